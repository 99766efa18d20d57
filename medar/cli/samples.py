"""Writing the samples of one or several requests, for commands that synthesize volumes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medar.cli.output import note, print_json
from medar.errors import MedarError
from medar.words import format_count

if TYPE_CHECKING:
    from medar.synthesis.request import Request
    from medar.synthesis.synthesizer import Preview, Synthesizer

MAX_SHOWN = 16
"""Largest number of samples on the contact sheet."""


def write_requests(
    out: Path,
    synthesizer: "Synthesizer",
    folders: dict[Path, Path | None],
    request: "Callable[[Path | None], Request]",
    seeds: Sequence[int],
    *,
    batch_size: int | None,
    preview: bool = False,
    json: bool = False,
) -> int:
    """Write the samples of a request per folder, and a contact sheet.

    Of several folders, one whose request fails is left out, with a message.

    Args:
        out: for the contact sheet.
        synthesizer: makes the samples.
        folders: to fill, each with the file that its samples follow.
        request: what to make of a file.
        seeds: one per sample of a folder.
        batch_size: volumes sampled at once; None: limited by memory.
        preview: draw the batch after each scale.
        json: print one JSON object.

    Returns:
        The exit code.

    Raises:
        MedarError: the only request fails, or all of them do.
    """
    from medar.report.artifacts import write_samples_sheet
    from medar.synthesis.samples import SHEET, write_samples

    images: list[Path] = []
    failed: dict[str, str] = {}
    made, kind, modality = 0, "volume", None
    for folder, path in folders.items():
        try:
            asked = request(path)
            job = synthesizer.job(asked)
        except MedarError as error:
            if len(failed) == len(folders) - 1:
                raise
            failed[str(path)] = str(error)
            note(f"{path}: left out: {error}")
            continue
        note(*job.notes)
        show = _preview(folder) if preview else None
        try:
            written, new = write_samples(
                folder, synthesizer, job, seeds, batch_size=batch_size, preview=show
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt("the same command resumes") from None
        images, made = images + written, made + new
        kind, modality = "volume" if job.until is None else "draft", asked.modality
    shown = images[:MAX_SHOWN]
    write_samples_sheet(shown, out / SHEET, len(synthesizer.plan.channels) > 1, modality)
    if json:
        counts = {"out": out, "made": made, "kept": len(images) - made, "images": images}
        print_json({**counts, "failed": failed, "contact_sheet": out / SHEET})
    else:
        print(f"{out}: {format_count(made, kind)} made, {len(images) - made} kept")
    return 1 if failed else 0


def _preview(out: Path) -> "Preview":
    """Draws the batch after each scale."""
    from medar.report.montages import ScalePreview
    from medar.synthesis.samples import PREVIEW

    return ScalePreview(out / PREVIEW)
