"""Which series the DICOM segmentations of a folder belong to: they name it by its identifier."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from medar.errors import MedarError


def images_of(
    segmentations: Iterable[Path], images: Mapping[str, Path]
) -> tuple[dict[Path, str], list[str]]:
    """The series that each segmentation refers to.

    Args:
        segmentations: the files.
        images: by name; folders are DICOM series.

    Returns:
        The name of the series by segmentation, without those that refer to none of the series or
        to several; and notes on segmentations that cannot be opened.
    """
    segmentations = list(segmentations)
    found: dict[Path, str] = {}
    notes: list[str] = []
    if not segmentations:
        return found, notes
    # Imported when they are needed: SimpleITK is slow to load.
    from medar.volume.dicom import first_series
    from medar.volume.dicom_segments import referenced_series

    by_series: dict[str, list[str]] = {}
    for name, path in images.items():
        if path.is_dir() and (series := first_series(path)):
            by_series.setdefault(series, []).append(name)
    for path in segmentations:
        try:
            references = referenced_series(path)
        except MedarError as error:
            notes.append(str(error))
            continue
        names = {name for series in references for name in by_series.get(series, ())}
        if len(names) == 1:
            found[path] = names.pop()
    return found, notes
