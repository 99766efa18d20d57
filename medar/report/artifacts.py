"""Write the pictures and report files that go with a training, synthesis or evaluation."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from medar.data.plan import Plan
from medar.evaluation.generation import GenerationReport
from medar.evaluation.generation.files import as_volume, held_out_volumes
from medar.evaluation.generation.readers import MAX_PLACES, draw_places
from medar.evaluation.reconstruction import ReconstructionReport
from medar.evaluation.reconstruction.cases import make_examples
from medar.evaluation.reconstruction.panel import Panel
from medar.evaluation.segmentation.report import SegmentationReport
from medar.evaluation.segmentation.worst import WorstCases
from medar.files import write_json, write_text
from medar.model_folder import read_preprocess
from medar.report.montages import contact_sheet, save_reconstructions, save_worst_cases
from medar.report.render import PICTURES, save_report
from medar.report.sections.panel import panel_page
from medar.report.sections.segmentation import segmentation_page
from medar.report.spheres import save_spheres
from medar.report.spreadsheet import to_csv
from medar.settings import to_dict
from medar.tokenizer.detail import Detail
from medar.tokenizer.tokenizer import Tokenizer
from medar.tokenizer.tokens import TOKENIZER
from medar.volume import Volume, read_volume

CONTACT_SHEET_VOLUMES = 8
"""Number of generated and of real volumes on the contact sheet of an evaluation."""


def training_preview(tokens: Path, out: Path) -> Callable[[int, Tensor], None]:
    """A `preview` for `train_generator` that writes OUT/samples/step_000100.png and so on.

    Args:
        tokens: the folder of tokens that the generator is trained on.
        out: the folder of the training.
    """
    plan = read_preprocess(tokens / TOKENIZER, Plan)

    def show(step: int, volumes: Tensor) -> None:
        folder = out / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        pictures = [as_volume(volume, plan) for volume in volumes.numpy()]
        contact_sheet(pictures, folder / f"step_{step:06d}.png")

    return show


def write_samples_sheet(
    images: Sequence[Path], path: Path, channels: bool, modality: str | None
) -> None:
    """Draw generated files on a contact sheet.

    Args:
        images: the generated files, at least one.
        path: the PNG.
        channels: whether the files have several channels.
        modality: "CT" or "MR"; None if unknown.
    """
    volumes = [read_volume(image, channels=channels, modality=modality) for image in images]
    contact_sheet(volumes, path, titles=[image.name.split(".")[0] for image in images])


def write_reconstruction(
    report: ReconstructionReport, tokenizer: Tokenizer, prepared: Path, out: Path
) -> None:
    """Write report.json and montage.png of an evaluation of a tokenizer."""
    steps: Detail = report.protocol["detail_steps"] or "none"
    examples = make_examples(tokenizer, prepared, report.split, detail=steps)
    unit = "HU" if report.mae_unit == "HU" else "units of the volume"
    save_reconstructions(out / "montage.png", examples, unit=unit)
    write_json(out / "report.json", report.to_dict())


def write_generation(
    report: GenerationReport, generated: dict[str, Volume], prepared: Path, out: Path
) -> None:
    """Write report.json and contact_sheet.png of an evaluation of generated volumes.

    After a Turing test also turing.csv and a reading test, see `write_reading_test`.

    Args:
        report: what `evaluate_generation` returned.
        generated: the volumes to draw, by title; `drawn_volumes` says how many are of use.
        prepared: the prepared data set that the real volumes are drawn from.
        out: the folder to write to.
    """
    real = held_out_volumes(prepared, report.split, CONTACT_SHEET_VOLUMES)
    shown = list(generated.items())[:CONTACT_SHEET_VOLUMES]
    contact_sheet(
        [volume for _, volume in shown],
        out / "contact_sheet.png",
        titles=[title for title, _ in shown],
        real=list(real.values()),
        real_titles=[f"real: {name}" for name in real],
    )
    if report.turing is not None:
        _write_csv(out / "turing.csv", [to_dict(one) for one in report.turing.scores])
        real = held_out_volumes(prepared, report.split, MAX_PLACES)
        write_reading_test(generated, real, report.protocol["seed"], out)
    write_json(out / "report.json", report.to_dict())


def drawn_volumes(turing: bool) -> int:
    """Number of generated volumes that `write_generation` draws at most."""
    return max(CONTACT_SHEET_VOLUMES, MAX_PLACES) if turing else CONTACT_SHEET_VOLUMES


def write_reading_test(
    synthetic: dict[str, Volume], real: dict[str, Volume], seed: int, out: Path
) -> None:
    """Write a sheet of real and synthetic volumes for human readers, and its key.

    readers/ is for the readers: sheet.png, on which volumes are numbered, and answers.csv, a form.
    readers_key.csv, outside that folder, says what each number shows.

    Args:
        synthetic: generated volumes by name.
        real: real volumes by name.
        seed: of what is shown where.
        out: the folder to write to.
    """
    places = draw_places(list(real), list(synthetic), seed)
    sources = {"real": real, "synthetic": synthetic}
    contact_sheet(
        [sources[place.truth][place.volume] for place in places],
        out / "readers" / "sheet.png",
        titles=[str(place.number) for place in places],
    )
    form = [{"number": place.number, "answer": ""} for place in places]
    _write_csv(out / "readers" / "answers.csv", form)
    _write_csv(out / "readers_key.csv", [to_dict(place) for place in places])


def write_segmentation(report: SegmentationReport, worst: WorstCases, out: Path) -> None:
    """Write cases.csv, report.json, report.html and report.md of an evaluation of label maps."""
    drawing = out / PICTURES / "worst.png"
    if worst.kept:
        save_worst_cases(drawing, worst.kept)
    save_report(segmentation_page(report, drawing.read_bytes() if worst.kept else None), out)
    _write_csv(out / "cases.csv", report.rows())
    write_json(out / "report.json", report.to_dict())


def write_panel(panel: Panel, out: Path) -> None:
    """Write panel.json, report.html, report.md and CSV files of a panel for medical detail.

    organs.csv has one row per method, case and label; structures.csv one per method, case and
    inserted structure. A file without rows is not written.
    """
    drawing = out / PICTURES / "spheres.png"
    if panel.shown:
        save_spheres(drawing, panel.shown)
    save_report(panel_page(panel.report, drawing.read_bytes() if panel.shown else None), out)
    for name, rows in (
        ("organs.csv", panel.report.case_organs),
        ("structures.csv", panel.report.case_structures),
    ):
        if rows:
            keys = [{"method": row.method, "case": row.case} for row in rows]
            _write_csv(
                out / name, [{**key, **to_dict(r)} for key, r in zip(keys, rows, strict=True)]
            )
    write_json(out / "panel.json", panel.report.to_dict())


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as a table."""
    write_text(path, to_csv(rows))
