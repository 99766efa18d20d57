"""`files_of`: every file that a volume consists of."""

from pathlib import Path

from medar.errors import MedarError
from medar.volume.dicom_kinds import is_segmentation
from medar.volume.header import META_ENDINGS, NRRD_ENDINGS, is_dicom
from medar.volume.metaimage import meta_files
from medar.volume.nrrd import nrrd_files


def files_of(path: str | Path) -> tuple[Path, ...]:
    """All files of a volume: a single file, a header and its data, those of a DICOM folder, or of
    the series that a DICOM file belongs to.

    Missing data files, and those of an unreadable header, are left out; reading the volume reports
    them.
    """
    path = Path(path)
    name = path.name.lower()
    if path.is_dir():
        return tuple(sorted(p for p in path.iterdir() if p.is_file()))
    for one, other in ((".hdr", ".img"), (".img", ".hdr")):
        for packed in ("", ".gz"):
            if name.endswith(one + packed):
                beside = path.with_name(path.name[: -len(one + packed)] + other + packed)
                return tuple(sorted(p for p in (path, beside) if p.exists()))
    if name.endswith(NRRD_ENDINGS + META_ENDINGS):
        return (path, *(one for one in _data_files(path) if one != path and one.is_file()))
    if path.is_file() and is_dicom(path) and not is_segmentation(path):
        # Imported when it is needed: SimpleITK is slow to load.
        from medar.volume.dicom import series_files

        return series_files(path)
    return (path,)


def _data_files(path: Path) -> tuple[Path, ...]:
    """The data files that a NRRD or MetaImage header names, once each."""
    find = nrrd_files if path.name.lower().endswith(NRRD_ENDINGS) else meta_files
    try:
        return tuple(dict.fromkeys(find(path)))
    except MedarError:
        return ()
