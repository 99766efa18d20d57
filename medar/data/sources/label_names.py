"""Which volumes of a folder are label maps, by their names and those of the others.

NAME_seg, NAME.seg (3D Slicer), NAME-label, NAME_mask_2 ... belong to NAME; seg_NAME and
segmentation-7 to NAME, or to the one other volume such as volume-7.
"""

import re
from collections.abc import Collection

LABEL_FOLDERS = {
    "labels", "label", "masks", "mask", "segmentations", "segmentation", "segs", "seg", "gt",
    "groundtruth", "ground_truth", "annotations", "labelstr", "labelsts",
}  # fmt: skip
"""Folders whose volumes are label maps, in lower case."""

_WORDS = (
    r"(?:labels?|label[-_]?maps?|d?segs?|segmentations?|masks?|gt|ground[-_]?truth|annotations?)"
)
_LAST = re.compile(rf"(?:(.*)[._ -])?{_WORDS}(?:[._ -]?\d{{1,2}})?", re.IGNORECASE)
_FIRST = re.compile(rf"{_WORDS}((?:[._ -]|\d).*)", re.IGNORECASE)
_WITHIN = re.compile(rf"(.+?)[._ -]{_WORDS}[._ -].+", re.IGNORECASE)


def label_maps(stems: Collection[str]) -> dict[str, str | None]:
    """The label maps among volumes, and the image of each; None if it is not known.

    Args:
        stems: paths of volumes below a folder, without endings.
    """
    folders: dict[str, _Images] = {}
    for stem in stems:
        folder, _, name = stem.rpartition("/")
        images = folders.setdefault(folder, _Images())
        if not _LAST.fullmatch(name):
            images.add(name)
    found: dict[str, str | None] = {}
    for stem in stems:
        folder, _, name = stem.rpartition("/")
        images = folders[folder]
        first, last, within = (p.fullmatch(name) for p in (_FIRST, _LAST, _WITHIN))
        image = None
        if {part.lower() for part in folder.split("/")} & LABEL_FOLDERS:
            found[stem] = None
            continue
        if first and (partners := images.ending_in(first[1])):
            image = partners[0] if len(partners) == 1 else None
        elif last:
            if last[1] in images.names:
                image = last[1]
            elif folder and not last[1] and len(images.names) == 1:
                image = next(iter(images.names))
        elif not (within and within[1] in images.names):
            continue
        found[stem] = f"{folder}/{image}" if folder and image else image
    return found


class _Images:
    """The volumes of a folder that are not named as label maps."""

    def __init__(self) -> None:
        self.names: dict[str, None] = {}
        self._by_end: dict[str, list[str]] = {}

    def add(self, name: str) -> None:
        self.names[name] = None
        if not _FIRST.fullmatch(name):
            word = re.match("[A-Za-z]*", name)
            self._by_end.setdefault(name[word.end() if word else 0 :], []).append(name)

    def ending_in(self, end: str) -> list[str]:
        """The volumes that consist of a word and `end`, or of `end` without its separator."""
        bare = end.lstrip("._ -")
        return self._by_end.get(end, []) or ([bare] if bare in self.names else [])
