"""Synthetic volumes to scroll through in the page, on request beside real ones."""

from medar.data.loading import PreparedDataset
from medar.evaluation.generation.files import as_volume, generated_volumes
from medar.records import PREPARED
from medar.report.blocks import Block, Stacks
from medar.report.folder import RunFolder
from medar.report.sections.samples_table import Sample, read_samples
from medar.report.stacks import make_stacks
from medar.volume import Volume

MAX_SAMPLES = 12
"""Samples to scroll through."""

HOW = (
    "Click on a volume, then use the mouse wheel or the arrow keys; a double click enlarges one. "
    "The patient's right is on the left of axial and coronal slices, anterior on the right of "
    "sagittal ones. All share one window. Slices are compressed: open the files for exact values."
)


def slices(run: RunFolder) -> list[Block]:
    """The first samples, each followed by the training case nearest to it if asked for."""
    plan = run.plan()
    samples = list(read_samples(run))[:MAX_SAMPLES]
    volumes = generated_volumes([one.files for one in samples], plan)
    real = _nearest(run, samples) if run.real_volumes else {}
    shown: list[tuple[str, bool, Volume]] = []
    for one in samples:
        shown.append((one.name, False, volumes[one.name]))
        case = _nearest_case(one)
        if case in real:
            shown.append((case, True, real[case]))
    stacks, remark = make_stacks(shown)
    beside = "Beside each sample: the training case nearest to it by features. " if real else ""
    return [Stacks(stacks, f"{beside}{HOW} {remark}".strip())]


def _nearest_case(one: Sample) -> str:
    """Id of the nearest training case by features, else by voxels; empty if unknown."""
    near = one.nearest.get("features") or next(iter(one.nearest.values()), None)
    return near.case if near else ""


def _nearest(run: RunFolder, samples: list[Sample]) -> dict[str, Volume]:
    """The training cases nearest to samples, as prepared, by id."""
    nearest = {_nearest_case(one) for one in samples}
    dataset = PreparedDataset(run.path / PREPARED, split="train")
    return {
        dataset.prepared[index].id: as_volume(dataset[index]["image"].numpy(), dataset.plan)
        for index in range(len(dataset))
        if dataset.prepared[index].id in nearest
    }
