"""`medar evaluate segmentation`: how near label maps come to the truth."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medar.cli.options import DataSet
from medar.cli.output import print_json, print_pairs, print_table
from medar.errors import MedarError

if TYPE_CHECKING:
    from medar.data.manifest import Manifest
    from medar.evaluation.segmentation.predictors import Predictor
    from medar.evaluation.segmentation.report import Comparison, ModelReport, SegmentationReport

DATASET = DataSet()


def segmentation(
    *folders: Path,
    predictions: list[Path] | None = None,
    split: Literal["train", "val", "test"] = "test",
    json: bool = False,
    out: Path | None = None,
    tolerance: float | None = None,
    limit: int | None = None,
    mirrors: str | None = None,
    overlap: float = 0.5,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    dataset: DataSet = DATASET,
) -> int:
    """Compare label maps with the truth: Dice, HD95, NSD, volumes, calibration.

    Parameters
    ----------
    folders
        MODEL [MODEL2 ...] DATA. Models are folders of segmentation networks, or of the runs that
        left them; further ones are compared with the first. DATA, the last, is a data set with
        labels, or a folder that `medar data prepare` filled, which knows the files and splits of
        the one it was made from.
    predictions
        Folder of finished label maps, a file CASE.nii.gz for each case, whatever made them; judged
        after the models, or alone. May be repeated.
    split
        The cases.
    json
        Print the report as one JSON object (docs/reference/segmentation-evaluation.md).
    out
        Folder for report.html, report.md, report.json and cases.csv.
    tolerance
        Of NSD, in mm; default the largest side of the cases' median voxel.
    limit
        The most cases, spread evenly over the split.
    mirrors
        As in `medar segment`: "none", or some of xyz; default those that a network was trained
        with.
    overlap
        Share of a window that it has in common with its neighbour.
    device
        CUDA where there is one, or as said.
    """
    from medar.evaluation.segmentation import evaluate_segmentation
    from medar.evaluation.segmentation.predictors import FilesPredictor, NetworkPredictor
    from medar.evaluation.segmentation.worst import WorstCases
    from medar.report.artifacts import write_segmentation
    from medar.segmentation.folder import load_segmenter
    from medar.segmentation.prediction import prediction_settings

    if not folders:
        raise MedarError("DATA is missing: medar evaluate segmentation MODEL [MODEL2 ...] DATA")
    if out is not None and out.exists() and not out.is_dir():
        raise MedarError(f"{out}: is a file; --out names a folder")
    *models, data = folders
    settings = prediction_settings(mirrors, overlap)
    judged = _read(data, dataset)
    predictors: list[Predictor] = [
        NetworkPredictor(load_segmenter(model, device), str(model), settings) for model in models
    ]
    predictors += [FilesPredictor(folder) for folder in predictions or []]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # better refused now than after the evaluation
    worst = WorstCases()
    report = evaluate_segmentation(
        predictors, judged, split, tolerance=tolerance, limit=limit, worst=worst
    )
    if out is not None:
        write_segmentation(report, worst, out)
    if json:
        print_json(report.to_dict())
    else:
        _print_report(report)
    return 0


def _read(data: Path, dataset: DataSet) -> "Path | Manifest":
    """DATA itself where it is prepared, else its files and their splits."""
    from medar.data.resolve import is_prepared

    if not is_prepared(data):
        return dataset.read(data)
    if dataset != DATASET:
        raise MedarError(
            f"{data} is prepared already: leave out --attributes, --modality and --seed, which "
            "are for data sets"
        )
    return data


def _print_report(report: "SegmentationReport") -> None:
    print(
        f"{report.cases} cases of {report.subjects} subjects, split {report.split}; "
        f"NSD at {report.tolerance:g} mm"
    )
    for model in report.models:
        _print_model(model)
    for one in report.comparisons:
        _print_comparison(one)
    for line in report.notes:
        print(f"note: {line}")
    print(f"protocol {report.protocol['name']}: docs/reference/segmentation-evaluation.md")


def _print_model(model: "ModelReport") -> None:
    figures = {
        "Dice": f"{_shown(model.dice_mean)} {_range(model.dice_interval)}",
        "HD95": f"{_shown(model.hd95_mean)} {_range(model.hd95_interval)} mm",
        "NSD": f"{_shown(model.nsd_mean)} {_range(model.nsd_interval)}",
    }
    if model.calibration is not None:
        figures["calibration error"] = _shown(model.calibration.error)
    print_pairs(model.name, figures)
    print_table(
        ("label", "Dice", "95 %", "HD95", "NSD", "cases", "missed", "invented", "bias in ml"),
        (
            (
                name,
                _shown(one.dice),
                _range(one.dice_interval),
                _shown(one.hd95),
                _shown(one.nsd),
                one.cases,
                one.missed,
                one.invented,
                "-" if one.volume is None else f"{one.volume.bias:.3g}",
            )
            for name, one in model.labels.items()
        ),
    )


def _print_comparison(one: "Comparison") -> None:
    print(f"{one.second} less {one.first}")
    print_table(
        ("metric", "difference", "95 %", "p", "effect", "subjects"),
        (
            (
                metric,
                f"{paired.difference:.4f}",
                _range(paired.interval, 4),
                f"{paired.p:.2g}",
                f"{paired.effect:.2f}",
                paired.subjects,
            )
            for metric, paired in one.overall.items()
            if paired is not None
        ),
    )


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _range(interval: tuple[float, float] | None, places: int = 3) -> str:
    return "-" if interval is None else f"[{interval[0]:.{places}f}, {interval[1]:.{places}f}]"
