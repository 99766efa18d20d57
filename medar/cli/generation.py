"""`medar evaluate generation`: how good generated volumes are, beside real ones."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medar.cli.output import print_json, print_pairs, print_table
from medar.cli.synthesize import CHOOSING, Choosing
from medar.errors import MedarError

if TYPE_CHECKING:
    from medar.evaluation.generation.evaluate import Batch, GenerationReport

Device = Literal["auto", "cpu", "cuda"]


def generation(
    made: Path,
    data: Path,
    /,
    *,
    split: Literal["val", "test", "held-out"] = "test",
    extractor: list[str] | None = None,
    weights: Path | None = None,
    json: bool = False,
    out: Path | None = None,
    samples: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch: int = 4,
    device: Device = "auto",
    choosing: Choosing = CHOOSING,
) -> int:
    """Compare generated volumes with real ones: likeness, diversity and copies.

    Parameters
    ----------
    made
        Folder of a generator, or of the run that left it: it makes volumes in memory, under the
        conditions of the held-out cases. Or folder of generated volumes, whatever made them
        (.nii.gz, prepared by DATA's plan), with label maps beside them as NAME_label.nii.gz if
        there are any.
    data
        The folder that `medar data prepare` filled and the generator was trained on.
    split
        The real volumes behind the floors; held-out is all but the train split.
    extractor
        Features to compare: radiomics-v1, texture-v1, medicalnet-v1, radimagenet-v1; may be
        repeated. The first also serves the search for copies. Default radiomics-v1, texture-v1.
    weights
        Local file of weights, for medicalnet-v1 or radimagenet-v1.
    json
        Print the report as one JSON object (docs/reference/evaluation.md).
    out
        Folder for report.json and contact_sheet.png.
    samples
        Of a generator: how many volumes; default as many as held-out cases, 20 at least. Of
        files: the most of them, in the order of their names; default all.
    limit
        The most training volumes, spread evenly over the split; copies of others go unseen.
    seed
        Of bootstrap draws, subsets and pairs; and of a generator's first volume, each further
        one having the next.
    batch
        Volumes at once.
    device
        Where volumes are made and features computed: CUDA where there is one, or as said.
    """
    from medar.data.prepared import Prepared
    from medar.devices import resolve_device
    from medar.evaluation.extractors import DEFAULT
    from medar.evaluation.generation import evaluate_generation
    from medar.evaluation.generation.files import generated_files, generated_volumes, read_generated
    from medar.evaluation.generation.sampling import SampledVolumes
    from medar.model_folder import holds_model
    from medar.report.artifacts import CONTACT_SHEET_VOLUMES, write_generation
    from medar.synthesis import Synthesizer

    if out is not None and out.exists() and not out.is_dir():
        raise MedarError(f"{out}: is a file; --out names a folder")
    if batch < 1:
        raise MedarError(f"--batch {batch}: a whole number from 1 is needed")
    plan = Prepared(data).plan
    sampled: SampledVolumes | None = None
    batches: Iterable[Batch]
    if holds_model(made):
        loaded = Synthesizer.from_pretrained(made, device)
        batches = sampled = SampledVolumes(
            loaded,
            data,
            split=split,
            samples=samples,
            seed=seed,
            sampling=choosing.settings(loaded.sampling),
            batch_size=batch,
        )
    else:
        _refuse_choosing(made, choosing)
        files = generated_files(made)[:samples]
        batches = read_generated(files, plan, batch_size=batch)
    report = evaluate_generation(
        batches,
        data,
        split=split,
        extractors=tuple(extractor or DEFAULT),
        weights=weights,
        samples=samples,
        limit=limit,
        seed=seed,
        batch_size=batch,
        device=resolve_device(device),
    )
    if sampled is not None:
        report = sampled.complete(report)
    if out is not None:
        shown = (
            sampled.first_volumes()
            if sampled is not None
            else generated_volumes(files[:CONTACT_SHEET_VOLUMES], plan)
        )
        write_generation(report, shown, data, out)
    if json:
        print_json(report.to_dict())
    else:
        print_report(report, str(made))
    return 0


def _refuse_choosing(made: Path, choosing: Choosing) -> None:
    if choosing != CHOOSING:
        raise MedarError(
            f"{made}: holds files, no generator; --guidance-scale, --temperature, --top-k and "
            "--top-p do not apply: leave them out"
        )


def print_report(report: "GenerationReport", what: str) -> None:
    """The report for people.

    Args:
        report: what `evaluate_generation` found.
        what: was judged: a folder's name.
    """
    memory, seconds = report.peak_memory, report.seconds_per_volume
    unit = report.intensity_unit
    print_pairs(
        f"{what}: {report.volumes} volumes against {report.reference} real ones (train split); "
        f"floors by {report.held_out} others ({report.protocol['held_out']})",
        {
            "intensity distance": f"{report.intensity_distance:.3g}, "
            f"floor {report.intensity_floor:.3g} ({unit})",
            "MS-SSIM of pairs": f"{report.ms_ssim:.3f}, of real pairs {report.ms_ssim_real:.3f}",
            "seconds a volume": "-" if seconds is None else f"{seconds:.3g}",
            "peak memory": "-" if memory is None else f"{memory / 2**20:.0f} MiB",
        },
    )
    print_table(
        ("features", "Frechet", "95 %", "floor", "kernel", "95 %", "floor"),
        (
            (
                f"{name} ({one.features})",
                _shown(one.frechet),
                _range(one.frechet_interval),
                f"{_shown(one.frechet_floor)} of {one.frechet_samples}",
                _shown(one.kernel),
                _range(one.kernel_interval),
                _shown(one.kernel_floor),
            )
            for name, one in report.distances.items()
        ),
    )
    print_table(
        ("nearest training volume by", "median", "held-out", "ratio", "nearer", "suspects"),
        (
            (
                name,
                _shown(one.median),
                _shown(one.median_held_out),
                _shown(one.ratio),
                f"{one.fraction_nearer:.1%}",
                len(one.suspects),
            )
            for name, one in report.memorisation.items()
        ),
    )
    for name, audit in report.memorisation.items():
        for one in audit.suspects[:3]:
            print(
                f"suspected copy by {name}: volume {one.index} of {one.case} "
                f"(distance {one.distance:.3g})"
            )
    for line in report.notes:
        print(f"note: {line}")
    print(f"protocol {report.protocol['name']}, seed {report.protocol['seed']}:")
    for part in ("distances", "memorisation"):
        for name, said in report.protocol[part].items():
            print(f"  {part}, {name}: {said}")


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _range(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.3g} to {interval[1]:.3g}"
