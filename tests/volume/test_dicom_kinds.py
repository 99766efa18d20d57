"""DICOM objects that are no scans, alone and beside a scan."""

import numpy as np
import pytest
from dicom_files import CT, enhanced, image, write_classic

from medar.errors import MedarError
from medar.volume import read_header, read_volume

STACK = np.arange(6 * 20, dtype=np.int16).reshape(6, 4, 5)
STORAGE = "1.2.840.10008.5.1.4.1.1"
SEG, DOSE, MAP, CONTOURS, REPORT = (
    f"{STORAGE}.{n}" for n in ("66.4", "481.2", "30", "481.3", "88.33")
)


def made(sop_class):
    """A file of a class: with frames and positions, or without pixels."""
    if sop_class in (CONTOURS, REPORT):
        one = image(sop_class, "1.2.7.1", STACK[0], SeriesInstanceUID="1.2.7")
        for name in ("PixelData", "Rows", "Columns", "BitsAllocated"):
            del one[name]
        return one
    if sop_class == DOSE:
        one = image(sop_class, "1.2.7.1", STACK.astype(np.uint16), SeriesInstanceUID="1.2.7")
        one.Modality, one.NumberOfFrames, one.DoseGridScaling = "RTDOSE", 6, "0.001"
        one.GridFrameOffsetVector = [2.5 * k for k in range(6)]
        one.ImagePositionPatient, one.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
        one.PixelSpacing = [1, 1]
        return one
    return enhanced(STACK, sop_class=sop_class, instance="1.2.7.1", SeriesInstanceUID="1.2.7")


KINDS = [
    (SEG, "a segmentation (DICOM SEG), not a scan", "give the series of the scan, of which it can"),
    (DOSE, "a dose distribution (RT Dose)", "give the series of the scan"),
    (MAP, "a parametric map", "convert it"),
    (CONTOURS, "contours (RT Structure Set)", "convert it"),
    (REPORT, "a report", "give the series of the scan"),
]


@pytest.mark.parametrize(("sop_class", "kind", "advice"), KINDS)
@pytest.mark.parametrize("name", ["a.dcm", "IM0001"])
def test_it_is_named_with_what_to_do(tmp_path, sop_class, kind, advice, name):
    path = tmp_path / name
    made(sop_class).save_as(path, enforce_file_format=True)
    for given in (path, tmp_path):
        with pytest.raises(MedarError) as caught:
            read_volume(given)
        message = str(caught.value)
        assert message.startswith(f"{path}: {kind}")
        assert advice in message
        assert "frame" not in message.replace(str(path), "")


@pytest.mark.parametrize(("sop_class", "kind", "advice"), KINDS)
def test_beside_a_scan_it_is_skipped(tmp_path, sop_class, kind, advice):
    folder = write_classic(tmp_path / "s", STACK)
    made(sop_class).save_as(folder / "other.dcm", enforce_file_format=True)
    for given in (folder, folder / "000.dcm"):
        header = read_header(given)
        assert header.grid.shape == (5, 4, 6)
        if sop_class == SEG:  # it belongs there: it is a label map
            assert header.notes == ()
            continue
        (note,) = header.notes
        assert note.startswith("1 file(s) that are no scans skipped, such as other.dcm (")
        assert kind.removesuffix(", not a scan") in note


def test_a_file_without_preamble_is_known_by_its_own_class(tmp_path):
    folder = write_classic(tmp_path / "s", STACK)
    one = made(DOSE)
    one.save_as(folder / "dose", enforce_file_format=True)
    content = (folder / "dose").read_bytes()
    start = content.index(b"\x08\x00\x16\x00UI")
    (folder / "dose").write_bytes(content[start:])
    (note,) = read_header(folder).notes
    assert "RT Dose" in note


def test_scans_are_scans(tmp_path):
    assert read_header(write_classic(tmp_path / "s", STACK, sop_class=CT)).notes == ()
