"""The cases of a prepared data set through a segmentation network, from their own files."""

from dataclasses import replace
from pathlib import Path

from medar.data.manifest import Split
from medar.data.prepared import Prepared
from medar.data.reading import read_image, reading_for
from medar.errors import MedarError
from medar.progress import track
from medar.segmentation.files import ENDING, digest_of, leave
from medar.segmentation.prediction import DEFAULT, Models, PredictionSettings, ensemble


def segment_cases(
    model: Models,
    data: str | Path,
    split: Split,
    out: str | Path,
    settings: PredictionSettings = DEFAULT,
) -> list[Path]:
    """Segment every case of a split, labelled or not, each on the grid of its file.

    Args:
        model: in evaluation mode; of several networks, the mean of their chances.
        data: a folder that `prepare` filled, which remembers the cases' files.
        split: the cases.
        out: a folder; each case leaves CASE.nii.gz and CASE.json there, as `segment_files` does.
        settings: how.

    Returns:
        The label maps.

    Raises:
        MedarError: no case of the split, or a file that cannot be read or segmented.
    """
    models = ensemble(model)
    plan, digest = models[0].plan, digest_of(models)
    manifest = Prepared(data).manifest()
    reading, cases = reading_for(manifest, plan.reading), manifest.select(split)
    if not cases:
        raise MedarError(f"{data}: no case in the split {split!r} to segment")
    made = []
    for case in track(cases, total=len(cases), label="segment"):
        image = read_image(case, reading)
        image = replace(image, modality=image.modality or plan.sole_modality)
        target = Path(out) / f"{case.id}{ENDING}"
        leave(target, models, image, digest, settings)
        made.append(target)
    return made
