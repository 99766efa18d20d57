"""Finding the volumes in a folder, and deriving case ids from their names."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from medar.data.case import UNUSABLE
from medar.errors import MedarError
from medar.files import digest
from medar.volume.dicom_kinds import is_segmentation, other_kind, storage_class
from medar.volume.header import DICOM_ENDINGS, FORMATS, VOLUME_ENDINGS, is_dicom

ENDINGS = sorted(VOLUME_ENDINGS, key=len, reverse=True)


def split_ending(name: str) -> tuple[str, str]:
    """`name` without its volume ending, and that ending, "" if it has none."""
    for ending in ENDINGS:
        if name.lower().endswith(ending):
            return name[: -len(ending)], name[-len(ending) :]
    return name, ""


def is_volume_file(path: Path) -> bool:
    """Whether the name is that of a volume; an .hdr/.img pair counts once."""
    stem, ending = split_ending(path.name)
    if not ending:
        return False
    if ending.lower().startswith(".img"):
        header = {".img": ".hdr", ".img.gz": ".hdr.gz"}[ending.lower()]
        return not path.with_name(stem + header).exists()
    return True


def is_dicom_folder(folder: Path) -> bool:
    """Whether a folder holds DICOM files that are no segmentations, which makes it one case."""
    return any(
        path.is_file() and is_dicom(path) and not is_segmentation(path) for path in visible(folder)
    )


def no_scan_in(folder: Path) -> str | None:
    """What a folder of DICOM files holds, if none is a scan: contours, a dose, reports ..."""
    found = None
    for path in visible(folder):
        if path.is_file() and is_dicom(path) and not is_segmentation(path):
            kind = other_kind(storage_class(path))
            if kind is None:
                return None
            found = found or kind[0]
    return found


def visible(folder: Path) -> list[Path]:
    """The entries of a folder, sorted by name, without hidden ones."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise MedarError(f"{folder}: cannot be listed ({error.strerror})") from error
    return [path for path in entries if not path.name.startswith(".")]


def exists(path: Path) -> bool:
    """Whether there is a file; none can have a name that is too long."""
    try:
        return path.exists()
    except OSError:
        return False


def find_volumes(folder: Path) -> Iterator[Path]:
    """Every volume file, DICOM series folder and DICOM segmentation below `folder`, by name.

    Segmentations are files, also those in the folder of a series.
    """
    for path in visible(folder):
        if path.is_dir():
            if path.is_symlink() and folder.resolve().is_relative_to(path.resolve()):
                continue  # a link to a parent folder would repeat its volumes
            if is_dicom_folder(path) and no_scan_in(path) is None:
                yield path
            yield from find_volumes(path)
        elif is_volume_file(path) or is_segmentation_file(path):
            yield path


def is_segmentation_file(path: Path) -> bool:
    """Whether a file is a DICOM segmentation; those with the ending of a volume are not opened."""
    return not split_ending(path.name)[1] and path.is_file() and is_segmentation(path)


def stem_of(path: Path, root: Path) -> str:
    """The path of a volume below `root`, without its ending."""
    relative = path.relative_to(root)
    name = relative.name
    if not path.is_dir():
        dicom = next((e for e in DICOM_ENDINGS if name.lower().endswith(e)), "")
        name = name[: -len(dicom)] if dicom else split_ending(name)[0]
    return relative.with_name(name).as_posix()


def ids_for(stems: Iterable[str]) -> dict[str, str]:
    """A case id per relative path: "/", control characters and those not allowed in file names
    become "_".

    Paths that give the same id ("a/b" and "a_b") get a hash of the path as a suffix.
    """
    ids = {stem: UNUSABLE.sub("_", stem).lstrip(".") or "_" for stem in stems}
    # Ids are file names, and many file systems ignore case.
    times = Counter(name.lower() for name in ids.values())
    return {
        stem: name if times[name.lower()] == 1 else f"{name}-{digest(stem)[:8]}"
        for stem, name in ids.items()
    }


def channel_of(path: Path) -> tuple[Path, int] | None:
    """Case and channel of an nnU-Net name: ID.nii.gz and 1 for ID_0001.nii.gz; else None."""
    stem, ending = split_ending(path.name)
    match = re.fullmatch(r"(.+)_(\d{4})", stem) if ending else None
    return (path.with_name(match[1] + ending), int(match[2])) if match else None


def not_a_data_set(path: Path) -> MedarError:
    """The error for a path that holds no data set."""
    return MedarError(
        f"{path}: no volume found; medar reads {FORMATS}, in a folder, an MSD or nnU-Net "
        "dataset.json, a BIDS tree or a JSONL manifest"
    )
