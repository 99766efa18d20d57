"""DICOM segmentations (SEG and label maps) as label maps: segment numbers are the values.

Frames are placed on the grid of the image they belong to, if it is given, otherwise on their own;
planes without a frame are background. What a label map cannot hold is refused: voxels of two
segments, and fractions.
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from medar.errors import MedarError, OffGridError, one_line
from medar.volume.dicom_codes import label_text
from medar.volume.dicom_enhanced import (
    frames_in,
    load_pydicom,
    read_dataset,
    stored_frames,
    whole_file,
)
from medar.volume.dicom_order import check_alike
from medar.volume.dicom_placing import FramePosition, own_grid, place_frames
from medar.volume.dicom_slice import Slice, plain
from medar.volume.geometry import Shape3
from medar.volume.header import Header
from medar.volume.volume import Provenance

KIND = "a DICOM segmentation"
LABELMAP, FRACTIONAL = "LABELMAP", "FRACTIONAL"


class _Segmentation(NamedTuple):
    """A segmentation without its pixels."""

    path: Path
    type: str
    """BINARY, FRACTIONAL or LABELMAP."""
    full: int
    """The value of a voxel that lies wholly in a segment, of type FRACTIONAL."""
    names: dict[int, str]
    """Of the segments, by number."""
    frames: list[Slice]
    segments: list[int]
    """The segment of each frame; of type LABELMAP 0."""
    references: tuple[str, ...]
    """SeriesInstanceUID of the series it refers to."""
    frame_of_reference: str


def read_segments_header(path: Path, image: Provenance | None = None) -> Header:
    """The header of a DICOM segmentation.

    Args:
        path: the file.
        image: the image that it belongs to; default: the grid of the frames themselves.

    Raises:
        OffGridError: it does not lie on the image's grid.
        MedarError: pydicom is not installed; the file is damaged; it refers to another series in
            another frame of reference than the image; without an image, the grid is not defined.
    """
    made = _read(path)
    notes = [] if image is None else _check_image(made, image)
    grid = own_grid(made.frames) if image is None else image.grid
    try:
        positions = place_frames(made.frames, grid, image.path if image else "an even grid")
    except OffGridError as error:
        if image is not None:
            raise
        raise MedarError(f"{error}, as its label map") from error
    _check_once(made, positions)
    largest = max(made.names, default=0)
    dtype = np.dtype(np.uint8 if largest < 256 else np.uint16)
    return Header(
        path=path,
        format="DICOM SEG",
        grid=grid,
        channels=1,
        dtype=str(dtype),
        load=lambda: _load(made, positions, grid.shape, dtype),
        notes=tuple(notes),
        series=made.frames[0].uid,
        frame_of_reference=made.frame_of_reference or None,
        segments=made.names,
    )


def segment_names(path: Path) -> dict[int, str]:
    """The names of the segments of a DICOM segmentation, by number.

    Raises:
        MedarError: see `read_segments_header`.
    """
    with _opened(path) as file:
        return _segments(path, file)


def segment_codes(path: Path) -> dict[int, str]:
    """The coded types of the segments of a DICOM segmentation by number, of those that have one.

    Raises:
        MedarError: see `read_segments_header`.
    """
    with _opened(path) as file:
        return {
            int(one.SegmentNumber): " ".join(map(str, found))
            for one in file.SegmentSequence
            if (found := _codes_of(one.get("SegmentedPropertyTypeCodeSequence")))
        }


def _codes_of(items: Any) -> list[str]:
    """Value and scheme of codes, with those of their modifiers, such as left and right."""
    found = []
    for item in items or ():
        value = item.get("CodeValue") or item.get("LongCodeValue") or item.get("URNCodeValue")
        found += [plain(str(value)), plain(str(item.get("CodingSchemeDesignator") or ""))]
        found += _codes_of(item.get("SegmentedPropertyTypeModifierCodeSequence"))
    return found


def referenced_series(path: Path) -> tuple[str, ...]:
    """SeriesInstanceUID of the series that a DICOM segmentation refers to.

    Raises:
        MedarError: see `read_segments_header`.
    """
    with _opened(path) as file:
        return _references(file)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The data set of a file, without its pixels; values are decoded when they are used."""
    load_pydicom(path, KIND)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that the standard does not allow
        try:
            yield read_dataset(path)
        except MedarError:
            raise
        except Exception as error:  # pydicom raises many types
            raise MedarError(f"{path}: damaged ({one_line(error)})") from error


def _read(path: Path) -> _Segmentation:
    with _opened(path) as file:
        whole = whole_file(path, file)
        frames = frames_in(whole, file)
        type_ = str(file.get("SegmentationType") or "").upper()
        full = int(file.get("MaximumFractionalValue") or 1)
        references = _references(file)
        names = _segments(path, file)
    if type_ not in ("BINARY", FRACTIONAL, LABELMAP):
        raise MedarError(
            f"{path}: SegmentationType must be BINARY, {FRACTIONAL} or {LABELMAP}, got {type_!r}"
        )
    check_alike(frames)
    segments = [0] * len(frames) if type_ == LABELMAP else [_segment_of(f, names) for f in frames]
    return _Segmentation(
        path=path,
        type=type_,
        full=full,
        names={number: name for number, name in names.items() if number},
        frames=frames,
        segments=segments,
        references=references,
        frame_of_reference=whole.tags["FrameOfReferenceUID"],
    )


def _references(file: Any) -> tuple[str, ...]:
    items = file.get("ReferencedSeriesSequence") or ()
    return tuple(plain(str(one.get("SeriesInstanceUID", ""))) for one in items)


def _segments(path: Path, file: Any) -> dict[int, str]:
    """The names of the segments by number, that of a background among them."""
    names: dict[int, str] = {}
    for one in file.get("SegmentSequence") or ():
        number = one.get("SegmentNumber")
        if not isinstance(number, int) or not 0 <= number < 1 << 16 or number in names:
            raise MedarError(
                f"{path}: SegmentNumber must be a number of its own for each segment, got {number}"
            )
        name = " ".join(str(one.get("SegmentLabel") or "").split())
        names[number] = label_text(name) if name else f"segment {number}"
    if not names:
        raise MedarError(f"{path}: damaged: no SegmentSequence, which names the segments")
    return names


def _segment_of(frame: Slice, names: dict[int, str]) -> int:
    text = frame.tags["ReferencedSegmentNumber"]
    if not text.isdigit() or int(text) not in names or int(text) == 0:
        raise MedarError(
            f"{frame.where}: ReferencedSegmentNumber must be one of "
            f"{', '.join(map(str, sorted(names)))}, got {text!r}"
        )
    return int(text)


def _check_image(made: _Segmentation, image: Provenance) -> list[str]:
    """Check that a segmentation belongs to an image; remarks, where that is not certain."""
    if image.series is None:  # not DICOM: positions alone can tell
        return []
    mine, its = made.frame_of_reference, image.frame_of_reference
    same = bool(mine) and mine == its
    if image.series in made.references or (same and not made.references):
        return []
    other = f"series {made.references[0]}" if made.references else "no series"
    if not same:
        raise MedarError(
            f"{made.path}: refers to {other} in the frame of reference {mine or 'unknown'}, the "
            f"image {image.path} is series {image.series} in {its or 'unknown'}; take the image "
            "that it was drawn on, or convert both to NIfTI if you know that they belong together"
        )
    return [f"refers to {other}; the image is another of the same frame of reference"]


def _check_once(made: _Segmentation, positions: Sequence[FramePosition]) -> None:
    """Check that a segment has at most one frame in each plane."""
    seen: dict[tuple[Any, ...], int] = {}
    for index, (segment, position) in enumerate(zip(made.segments, positions, strict=True)):
        other = seen.setdefault((segment, position), index)
        if other != index:
            raise MedarError(
                f"{made.frames[index].where}: the same position as frame {other + 1}, of the same "
                "segment; split the file"
            )


def _load(
    made: _Segmentation, positions: Sequence[FramePosition], shape: Shape3, dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    """The label map, (X, Y, Z)."""
    array = np.zeros(shape, dtype=dtype)
    allowed = np.array([0, *made.names])
    pydicom = load_pydicom(made.path, KIND)
    try:
        for index, pixels in enumerate(_pixels(pydicom, made)):
            view, number = positions[index].view(array), made.segments[index]
            if made.type == LABELMAP:
                if not np.isin(pixels, allowed).all():
                    value = int(pixels[~np.isin(pixels, allowed)][0])
                    raise MedarError(f"{made.path}: damaged: value {value} is of no segment")
                np.copyto(view, pixels, casting="unsafe")
                continue
            if made.type == FRACTIONAL:
                _check_whole(made, number, pixels)
            inside = pixels != 0
            if (present := view[inside]).any():
                other = int(present[present != 0][0])
                raise MedarError(
                    f"{made.path}: segments {_named(made, other)} and {_named(made, number)} "
                    "overlap, but a label map has one value per voxel; export them without "
                    "overlap, or each to a file of its own"
                )
            view[inside] = number
    except MedarError:
        raise
    except Exception as error:  # pydicom raises many types
        reason = one_line(error)
        raise MedarError(f"{made.path}: its pixels cannot be read ({reason})") from error
    return array


def _check_whole(made: _Segmentation, number: int, pixels: npt.NDArray[Any]) -> None:
    """Check that no voxel of type FRACTIONAL lies partly in a segment."""
    parts = pixels[(pixels != 0) & (pixels != made.full)]
    if parts.size:
        raise MedarError(
            f"{made.path}: a fractional segmentation ({parts[0] / made.full:.2f} in segment "
            f"{_named(made, number)}); export it as a binary one, with the threshold of your choice"
        )


def _named(made: _Segmentation, number: int) -> str:
    return f"{number} ({made.names.get(number, '')})"


def _pixels(pydicom: ModuleType, made: _Segmentation) -> Iterator[npt.NDArray[Any]]:
    """The stored values of each frame, (rows, columns)."""
    count = len(made.frames)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if made.frames[0].tags["BitsAllocated"] != "1":
            yield from stored_frames(pydicom, made.path, range(count))
            return
        file = read_dataset(made.path, pixels=True)
        columns, rows = made.frames[0].size
        if file.file_meta.TransferSyntaxUID.is_encapsulated:
            yield from pydicom.pixels.iter_pixels(file, raw=True)
            return
        # Frames of single bits follow one another without regard to bytes (PS3.5 8.1.1).
        packed = np.frombuffer(file.PixelData, dtype=np.uint8)
        for index in range(count):
            first, last = index * rows * columns, (index + 1) * rows * columns
            bits = np.unpackbits(packed[first // 8 : -(-last // 8)], bitorder="little")
            yield bits[first % 8 :][: rows * columns].reshape(rows, columns)
