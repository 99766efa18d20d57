"""Which volumes of a folder are label maps, by their names and those of the others.

NAME_seg, NAME.seg (3D Slicer), NAME-label, NAME_mask_2 ... belong to NAME; seg_NAME and
segmentation-7 to NAME, or to the one other volume such as volume-7. Beside NAME, NAME_brainmask,
NAME_manual or NAMESeg are label maps, too; whether they are NAME's label is not decided here.
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
_PART = re.compile(r"[a-z]+|[A-Z][a-z]+|[A-Z]+(?![a-z])")
"""A word of a name: brain and mask in brain_mask2, ct and Seg in ctSeg."""
_ALONE = re.compile(
    r"(?:label+ed|lbls?|segm|[a-z]*(?:segs?|masks?|labels?|label-?maps?)|msks?|rois?|truth|gts?"
    r"|ground-?truth|segmentations?|annot(?:ation)?s?|manual|contours?|delineations?|lesions?"
    r"|tumou?rs?|structures?|pred(?:iction)?s?|parc(?:ellation)?s?|aparc)",
    re.IGNORECASE,
)
"""A word that stands for a label map beside an image of the same name without it."""


def label_maps(stems: Collection[str]) -> dict[str, str | None]:
    """The label maps among volumes, and the image of each; None if it is not known.

    Args:
        stems: paths of volumes below a folder, without endings.
    """
    folders: dict[str, _Images] = {}
    elsewhere: set[str] = set()
    for stem in stems:
        folder, _, name = stem.rpartition("/")
        images = folders.setdefault(folder, _Images())
        if not _LAST.fullmatch(name):
            images.add(name)
        if not _has_word(folder):
            elsewhere.add(name)
    found: dict[str, str | None] = {}
    for stem in stems:
        folder, _, name = stem.rpartition("/")
        images = folders[folder]
        first, last = _FIRST.fullmatch(name), _LAST.fullmatch(name)
        image = None
        own = {part.lower() for part in folder.split("/")} & LABEL_FOLDERS
        # Of other folders, such as lesion_masks, only what repeats an image's name.
        if own or (_has_word(folder) and name in elsewhere):
            found[stem] = None
            continue
        if first and (partners := images.ending_in(first[1])):
            image = partners[0] if len(partners) == 1 else None
        elif last:
            if last[1] in images.names:
                image = last[1]
            elif folder and not last[1] and len(images.names) == 1:
                image = next(iter(images.names))
        elif not images.any_within(name):
            continue
        found[stem] = f"{folder}/{image}" if folder and image else image
    return found


def _has_word(text: str) -> bool:
    """Whether a word of a name, or of the folders of a path, is that of a label map."""
    return any(_ALONE.fullmatch(part) for part in _PART.findall(text))


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

    def any_within(self, name: str) -> bool:
        """Whether `name` is that of another volume, followed by a word of label maps."""
        ends = (end for end in range(1, len(name)) if name[:end] in self.names)
        return any(_has_word(name[end:]) for end in ends)
