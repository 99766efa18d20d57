"""`medar evaluate generation`: how good generated volumes are, beside real ones."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medar.cli.output import print_json, print_pairs, print_table
from medar.errors import MedarError

if TYPE_CHECKING:
    from medar.data.plan import Plan
    from medar.evaluation.generated import GeneratedFile
    from medar.evaluation.generation import GenerationReport

DRAWN = 8
"""Generated and real volumes each on the contact sheet."""


def generation(
    files: Path,
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
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> int:
    """Compare generated volumes with real ones: likeness, diversity and copies.

    Parameters
    ----------
    files
        Folder of generated volumes (.nii.gz, of the plan's size), with label maps beside them as
        NAME_label.nii.gz if there are any.
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
        The most generated volumes, in the order of their names.
    limit
        The most training volumes, spread evenly over the split; copies of others go unseen.
    seed
        Of bootstrap draws, subsets and pairs.
    batch
        Volumes at once.
    device
        Where features are computed: CUDA where there is one, or as said.
    """
    from medar.data.prepared import Prepared
    from medar.evaluation.extractors import DEFAULT
    from medar.evaluation.generated import generated_files, read_generated
    from medar.evaluation.generation import evaluate_generation
    from medar.tokenizer.inference import device_named

    if out is not None and out.exists() and not out.is_dir():
        raise MedarError(f"{out}: is a file; --out names a folder")
    if batch < 1:
        raise MedarError(f"--batch {batch}: a whole number from 1 is needed")
    plan = Prepared(data).plan
    found = generated_files(files)[:samples]
    report = evaluate_generation(
        read_generated(found, plan, batch_size=batch),
        data,
        split=split,
        extractors=tuple(extractor or DEFAULT),
        weights=weights,
        samples=samples,
        limit=limit,
        seed=seed,
        batch_size=batch,
        device=device_named(device),
    )
    if out is not None:
        _leave(report, found[:DRAWN], plan, data, out)
    if json:
        print_json(report.to_dict())
    else:
        print_report(report, str(files))
    return 0


def _leave(
    report: "GenerationReport", files: "list[GeneratedFile]", plan: "Plan", data: Path, out: Path
) -> None:
    """Write report.json and contact_sheet.png."""
    from medar.evaluation.generated import generated_pictures, real_pictures
    from medar.files import write_json
    from medar.report.generation import contact_sheet

    made, real = generated_pictures(files, plan), real_pictures(data, report.split, DRAWN)
    contact_sheet(
        list(made.values()),
        out / "contact_sheet.png",
        titles=list(made),
        real=list(real.values()),
        real_titles=[f"real: {name}" for name in real],
    )
    write_json(out / "report.json", report.to_dict())


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
                f"{one.share_nearer:.1%}",
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
