"""`medar evaluate generation`, `editing` and `conditions`: how good generated volumes are."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medar.cli.evaluate_turing import print_turing
from medar.cli.options import THIS_MACHINE, Cluster, Reading
from medar.cli.output import (
    check_folder,
    decimal,
    interval,
    largest,
    periods,
    print_json,
    print_pairs,
    print_table,
    thirds,
)
from medar.cli.sampling import SAMPLING, SamplingOptions
from medar.devices import DeviceName
from medar.errors import MedarError, check_positive
from medar.words import format_count

if TYPE_CHECKING:
    from medar.evaluation.generation.agreement import AgreementReport
    from medar.evaluation.generation.batches import Batch
    from medar.evaluation.generation.editing import EditingReport
    from medar.evaluation.generation.evaluate import GenerationReport

READING = Reading()


def generation(
    volumes: Path,
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
    turing: bool = False,
    device: DeviceName = "auto",
    sampling: SamplingOptions = SAMPLING,
    reading: Reading = READING,
    cluster: Cluster = THIS_MACHINE,
) -> int:
    """Compare generated volumes with real ones: similarity, diversity and copies.

    Parameters
    ----------
    volumes
        Folder of a generator, or of its training run; or a name of `medar models`: volumes are
        sampled in memory, under the conditions of the held-out cases. Or a folder of generated
        volumes from any source (.nii.gz, prepared by DATA's plan), optionally with label maps
        NAME_label.nii.gz.
    data
        The folder that `medar data prepare` filled and the generator was trained on.
    split
        Split of the real volumes that give the floors; held-out: all but the train split.
    extractor
        Features to compare: radiomics-v2, texture-v2, medicalnet-v1, radimagenet-v1; may be
        repeated. The first is also used in the search for copies. Default:
        radiomics-v2 and texture-v2.
    weights
        Local file with the weights of medicalnet-v1 or radimagenet-v1.
    json
        Print the report as one JSON object (docs/reference/evaluation.md).
    out
        Folder for report.json and contact_sheet.png.
    samples
        Number of volumes to sample from a generator; default: the number of held-out cases, but at
        least 20. For a folder of volumes: maximum number, in the order of their names; default:
        all.
    limit
        Maximum number of training volumes, evenly spaced; copies of others are not found.
    seed
        Seed of bootstrap draws, subsets and pairs, and of a generator's first volume; the volumes
        after it use SEED + 1, SEED + 2 and so on.
    batch
        Volumes per batch.
    turing
        Also train small networks to tell the volumes from real ones and report how well they can;
        with --out, write each volume's score (turing.csv) and a test for human readers: the folder
        readers, and its key readers_key.csv.
    device
        Where volumes are sampled, features computed and networks trained; "auto": CUDA if
        available.
    """
    from medar.data.prepared import Prepared
    from medar.data.reading import merged_reading
    from medar.evaluation.extractors import DEFAULT
    from medar.evaluation.generation import evaluate_generation
    from medar.evaluation.generation.files import (
        generated_files,
        generated_volumes,
        read_generated,
    )
    from medar.evaluation.generation.sampling import SampledVolumes
    from medar.model_folder import holds_model
    from medar.report.artifacts import drawn_volumes, write_generation
    from medar.synthesis import Synthesizer

    check_folder(out)
    check_positive(samples=samples)
    if batch < 1:
        raise MedarError(f"--batch must be at least 1, got {batch}")
    plan, patch_size = Prepared(data).plan, 2
    sampled: SampledVolumes | None = None
    batches: Iterable[Batch]
    if holds_model(volumes, "generator"):
        loaded = Synthesizer.from_pretrained(volumes, device)
        batches = sampled = SampledVolumes(
            loaded,
            data,
            split=split,
            samples=samples,
            seed=seed,
            sampling=sampling.settings(loaded.sampling),
            batch_size=batch,
            shown=drawn_volumes(turing),
        )
        patch_size = loaded.tokenizer.config.network.patch_size
    elif sampling != SAMPLING:
        raise MedarError(
            f"{volumes}: holds files, not a generator; leave out --guidance-scale, --temperature, "
            "--top-k, --top-p and --passes"
        )
    else:
        files = generated_files(volumes)[:samples]
        plan = replace(plan, reading=merged_reading(plan.reading, reading.options()))
        batches = read_generated(files, plan, batch_size=batch)
    with cluster.use(*([] if sampled else [volumes]), data, weights):
        report = evaluate_generation(
            batches,
            data,
            split=split,
            extractors=tuple(extractor or DEFAULT),
            weights=weights,
            limit=limit,
            seed=seed,
            batch_size=batch,
            device=device,
            turing=turing,
            from_files=sampled is None,
            patch_size=patch_size,
        )
    if sampled is not None:
        report = sampled.complete(report)
    if out is not None:
        if sampled is not None:
            shown = sampled.first_volumes()
        else:
            shown = generated_volumes(files[: drawn_volumes(turing)], plan)
        write_generation(report, shown, data, out)
    if json:
        print_json(report.to_dict())
    else:
        _print_generation(report, str(volumes))
    return 0


def editing(
    model: Path,
    data: Path,
    /,
    *,
    split: Literal["train", "val", "test"] = "test",
    json: bool = False,
    samples: int = 4,
    box: float = 0.5,
    factor: int = 2,
    known_scales: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    device: DeviceName = "auto",
    sampling: SamplingOptions = SAMPLING,
) -> int:
    """Fill a box of held-out volumes, raise their resolution, and compare with the real ones.

    Parameters
    ----------
    model
        Folder of a generator, or of its training run; or a name of `medar models`.
    data
        The folder that `medar data prepare` filled and the generator was trained on.
    split
        The split whose cases are edited.
    json
        Print the report as one JSON object (docs/reference/evaluation.md).
    samples
        Number of samples per case and task.
    box
        Side lengths of the filled box, as a fraction of the volume's.
    factor
        Factor by which the resolution is reduced along each axis.
    known_scales
        Number of scales taken from the low-resolution volume; default: as many as its spacing
        allows.
    limit
        Maximum number of cases, evenly spaced over the split.
    seed
        Seed of boxes and samples.
    device
        "auto": CUDA if available.
    """
    from medar.evaluation.generation.editing import evaluate_editing
    from medar.synthesis import Synthesizer

    loaded = Synthesizer.from_pretrained(model, device)
    report = evaluate_editing(
        loaded,
        data,
        split,
        samples=samples,
        box=box,
        factor=factor,
        scales=known_scales,
        limit=limit,
        sampling=sampling.settings(loaded.sampling),
        seed=seed,
    )
    if json:
        print_json(report.to_dict())
    else:
        _print_editing(report, str(model))
    return 0


def conditions(
    model: Path,
    data: Path,
    /,
    *,
    judge: Path,
    max_minutes: float | None = None,
    split: Literal["train", "val", "test"] = "test",
    json: bool = False,
    limit: int | None = None,
    seed: int = 0,
    device: DeviceName = "auto",
    sampling: SamplingOptions = SAMPLING,
) -> int:
    """Segment samples that follow held-out label maps, and compare with the maps (Dice).

    The judge is a segmentation network trained on the real volumes of the train split. It is
    trained once; its folder then serves for any number of generators.

    Parameters
    ----------
    model
        Folder of a generator that takes label maps, or of its training run.
    data
        The folder that `medar data prepare` filled and the generator was trained on.
    judge
        Folder of the judge, which is trained first if there is none; the same command resumes an
        interrupted training.
    max_minutes
        Minutes of the judge's training; default: 5. An existing judge must have been trained with
        the same value.
    split
        The split whose label maps the samples follow.
    json
        Print the report as one JSON object (docs/reference/evaluation.md).
    limit
        Maximum number of cases, evenly spaced over the split.
    seed
        Seed of the first sample; the samples after it use SEED + 1, SEED + 2 and so on.
    device
        "auto": CUDA if available.
    """
    from medar.evaluation.generation.agreement import (
        check_maps,
        evaluate_conditions,
        judge_settings,
        train_judge,
    )
    from medar.synthesis import Synthesizer

    loaded = Synthesizer.from_pretrained(model, device)
    check_maps(loaded, str(model))
    network = train_judge(data, judge, judge_settings(max_minutes, device=device))
    report = evaluate_conditions(
        loaded,
        data,
        network,
        split,
        limit=limit,
        sampling=sampling.settings(loaded.sampling),
        seed=seed,
    )
    if json:
        print_json(report.to_dict())
    else:
        _print_conditions(report, str(model))
    return 0


def _print_generation(report: "GenerationReport", name: str) -> None:
    memory = report.peak_memory
    print_pairs(
        f"{name}: {format_count(report.volumes, 'volume')} compared with {report.reference} real "
        f"ones (train split); floors from {report.held_out} others ({report.protocol['held_out']})",
        {
            "intensity distance": f"{report.intensity_distance:.3g}, "
            f"floor {report.intensity_floor:.3g} ({report.intensity_unit})",
            "power ratio": f"{thirds(report.power_ratio_thirds)}; held-out volumes "
            + ", ".join(f"{ratio:.3f}" for ratio in report.power_ratio_thirds_floor),
            "grid artifact": f"{periods(report.grid_artifacts)}; 1 for real volumes, "
            f"{decimal(report.grid_artifact_floor)} held-out",
            "MS-SSIM of pairs": f"{report.ms_ssim:.3f}, of real pairs {report.ms_ssim_real:.3f}",
            "seconds per volume": decimal(report.seconds_per_volume),
            "peak memory": "-" if memory is None else f"{memory / 2**20:.0f} MiB",
        },
    )
    print_table(
        ("features", "Frechet", "95 %", "floor", "N", "kernel", "95 %", "floor"),
        (
            (
                f"{name} ({one.features})",
                decimal(one.frechet),
                interval(one.frechet_interval),
                decimal(one.frechet_floor),
                one.frechet_samples,
                decimal(one.kernel),
                interval(one.kernel_interval),
                decimal(one.kernel_floor),
            )
            for name, one in report.distances.items()
        ),
    )
    for name, distance in report.distances.items():
        print(f"largest contributions to {name}: {largest(distance.contributions)}")
    print_table(
        ("nearest training volume by", "median", "held-out", "ratio", "nearer", "suspects"),
        (
            (
                name,
                decimal(one.median),
                decimal(one.median_held_out),
                decimal(one.ratio),
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
    if report.turing is not None:
        print_turing(report.turing)
    _print_notes(report.notes, report.protocol)
    for part in ("distances", "memorisation"):
        for name, method in report.protocol[part].items():
            print(f"  {part}, {name}: {method}")


def _print_editing(report: "EditingReport", model: str) -> None:
    tasks = {"inpainting": report.inpainting, "upscaling": report.upscaling}
    print_pairs(
        f"{model}: {format_count(report.cases, 'case')} of the split {report.split}, "
        f"{format_count(report.samples, 'sample')} each",
        {
            "inpainting": f"a box of {report.box:g} of each side, "
            f"{report.inpainting.known_fraction:.1%} of the tokens known",
            "upscaling": f"{report.factor} times, {report.known_scales} scales or "
            f"{report.upscaling.known_fraction:.1%} of the tokens known",
        },
    )
    print_table(
        ("task", "volumes", "PSNR", "SSIM"),
        (
            (task, name, f"{one.psnr:.2f}", f"{one.ssim:.3f}")
            for task, result in tasks.items()
            for name, one in result.similarity.items()
        ),
    )
    _print_notes(report.notes, report.protocol)


def _print_conditions(report: "AgreementReport", model: str) -> None:
    print(f"{model}: Dice with {report.cases} label maps of the split {report.split}")
    rows = {
        "samples": report.samples,
        "real volumes": report.real,
        "their reconstructions": report.reconstructed,
        "samples, another case's map": report.unrelated,
    }
    labels = list(report.samples)
    print_table(
        ("volumes", *labels),
        ((name, *(decimal(row[label], ".3f") for label in labels)) for name, row in rows.items()),
    )
    _print_notes(report.notes, report.protocol)


def _print_notes(notes: list[str], protocol: dict[str, Any]) -> None:
    for line in notes:
        print(f"note: {line}")
    print(f"protocol {protocol['name']}, seed {protocol['seed']}")
