"""`medar evaluate editing` and `conditions`: what a generator makes of what it is given."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medar.cli.output import print_json, print_pairs, print_table
from medar.cli.synthesize import CHOOSING, Choosing

if TYPE_CHECKING:
    from medar.evaluation.generation.agreement import AgreementReport
    from medar.evaluation.generation.editing import EditingReport

Device = Literal["auto", "cpu", "cuda"]


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
    device: Device = "auto",
    choosing: Choosing = CHOOSING,
) -> int:
    """Fill a box of held-out volumes, raise their resolution, and compare with the real ones.

    Parameters
    ----------
    model
        Folder of a generator, or of the run that left it.
    data
        The folder that `medar data prepare` filled and the generator was trained on.
    split
        The cases.
    json
        Print the report as one JSON object (docs/reference/evaluation.md).
    samples
        Of each case, for each of the two.
    box
        Sides of the box that is filled, as a share of the volume's.
    factor
        By which the resolution is lowered along each axis.
    known_scales
        Scales that the volume of low resolution gives; default as many as its spacing allows.
    limit
        The most cases, spread evenly over the split.
    seed
        Of boxes and samples.
    device
        CUDA where there is one, or as said.
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
        sampling=choosing.settings(loaded.sampling),
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
    device: Device = "auto",
    choosing: Choosing = CHOOSING,
) -> int:
    """Segment samples that follow held-out label maps, and compare with the maps (Dice).

    The judge is a segmentation network trained on the real volumes of the train split. Once it is
    trained, the same folder judges any number of generators.

    Parameters
    ----------
    model
        Folder of a generator that takes label maps, or of the run that left it.
    data
        The folder that `medar data prepare` filled and the generator was trained on.
    judge
        Folder of the judge, which is trained first if it is not there; interrupted, the same
        command goes on.
    max_minutes
        Minutes of the judge's training; default 5. The same again for a judge that is there.
    split
        Whose label maps are followed.
    json
        Print the report as one JSON object (docs/reference/evaluation.md).
    limit
        The most cases, spread evenly over the split.
    seed
        Of the first sample; each further one has the next.
    device
        CUDA where there is one, or as said.
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
    judging = train_judge(data, judge, judge_settings(max_minutes, device=device))
    report = evaluate_conditions(
        loaded,
        data,
        judging,
        split,
        limit=limit,
        sampling=choosing.settings(loaded.sampling),
        seed=seed,
    )
    if json:
        print_json(report.to_dict())
    else:
        _print_conditions(report, str(model))
    return 0


def _print_editing(report: "EditingReport", model: str) -> None:
    print_pairs(
        f"{model}: {report.cases} cases of the split {report.split}, {report.samples} samples each",
        {
            "inpainting": f"a box of {report.box:g} of each side, "
            f"{report.inpainting.known_fraction:.1%} of the tokens known",
            "upscaling": f"{report.factor} times, {report.known_scales} scales or "
            f"{report.upscaling.known_fraction:.1%} of the tokens known",
        },
    )
    tasks = {"inpainting": report.inpainting, "upscaling": report.upscaling}
    print_table(
        ("task", "volumes", "PSNR", "SSIM"),
        (
            (task, name, f"{one.psnr:.2f}", f"{one.ssim:.3f}")
            for task, found in tasks.items()
            for name, one in found.similarity.items()
        ),
    )
    for line in report.notes:
        print(f"note: {line}")
    print(f"protocol {report.protocol['name']}, seed {report.protocol['seed']}")


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
        ((name, *(_shown(found[label]) for label in labels)) for name, found in rows.items()),
    )
    for line in report.notes:
        print(f"note: {line}")
    print(f"protocol {report.protocol['name']}, seed {report.protocol['seed']}")


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
