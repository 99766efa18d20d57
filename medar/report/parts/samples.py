"""What came out, to look at: synthetic beside real volumes, and samples from coarse to fine."""

from medar.report.blocks import Block, LeftOut, Picture, Text
from medar.report.folder import RunFolder
from medar.report.parts.likeness import GENERATION
from medar.report.words import counted

SHEET, PREVIEW = "evaluation/contact_sheet.png", "samples/preview.png"

PLANES = (
    "Each column is a volume, cut through its middle: sagittal, coronal, axial from top to bottom. "
    "The patient's right is on the left of coronal and axial pictures."
)


def volumes(run: RunFolder) -> list[Block]:
    """Synthetic volumes, and real ones beside them if they were compared."""
    made = len(list((run.path / "samples").glob("sample_*.json")))
    notice = Text(
        "A model made these volumes. They were chosen by their number, not by their looks"
        + (f"; all {counted(made, 'volume')} are in samples/ as NIfTI files." if made > 1 else ".")
    )
    if run.holds(SHEET):
        return [notice, _beside_real(run)]
    picture = Picture(
        "samples.png",
        run.png("samples/contact_sheet.png", "synthesize"),
        "Grid of pictures: synthetic volumes in three planes.",
        f"Synthetic volumes. {PLANES} All pictures share one window.",
        wide=True,
    )
    return [notice, picture]


def _beside_real(run: RunFolder) -> Picture:
    report = run.object(GENERATION, "evaluate")
    shown = report["protocol"].get("held_out", report["split"])
    return Picture(
        "volumes.png",
        run.png(SHEET, "evaluate"),
        "Grid of pictures in two bands: above, synthetic volumes in three planes; below, real "
        "volumes that no model was trained on, in the same planes.",
        f"Above synthetic volumes, below real ones ({shown}). {PLANES} All pictures share the "
        "window of the real volumes and one scale in mm.",
        wide=True,
    )


def coarse_to_fine(run: RunFolder) -> list[Block]:
    """How samples grow."""
    if not run.holds(PREVIEW):
        run.need("samples/contact_sheet.png", "synthesize")
        raise LeftOut(f"no preview was drawn (no {PREVIEW})")
    return [
        Picture(
            "scales.png",
            run.png(PREVIEW, "synthesize"),
            "Grid of pictures, a row a synthetic volume: decoded after the first scale, after "
            "the second, and so on to the last.",
            "Synthetic volumes while they are made, a row each: what the tokens of the first "
            "scale decode to, of the first two, and so on. Coronal planes through the middle; all "
            "pictures of a row share one window.",
            wide=True,
        )
    ]
