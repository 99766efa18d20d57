"""Damaged compressed pixels are refused in one line, and decoders print nothing of their own."""

import os
import threading

import numpy as np
import pydicom
import pytest
from dicom_files import classic_slices, compressed, enhanced

from medar.errors import MedarError
from medar.volume import read_header
from medar.volume.decoder_messages import decoding
from medar.volume.dicom_slice import read_slice

STACK = np.random.default_rng(2).integers(-900, 900, (4, 20, 24)).astype(np.int16)


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
@pytest.mark.parametrize(
    "change",
    [lambda f: f[: len(f) // 2], lambda f: f[:300] + f[340:], lambda f: b"\xf7" + f[1:]],
    ids=["shorter", "a hole", "another first byte"],
)
def test_a_damaged_frame_is_refused(tmp_path, capfd, compressor, change):
    made = compressed(enhanced(STACK), compressor, tmp_path)
    frames = list(pydicom.encaps.generate_frames(made.PixelData, number_of_frames=4))
    frames[1] = change(frames[1])
    made.PixelData = pydicom.encaps.encapsulate(frames)
    made["PixelData"].VR = "OB"
    made.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    header = read_header(tmp_path / "a.dcm")
    with pytest.raises(MedarError, match=r"a\.dcm: its (compressed )?pixels"):
        header.load()
    assert capfd.readouterr().err == ""


def test_what_decoders_print_is_named(tmp_path, capfd):
    path = tmp_path / "a.dcm"
    for text in (b"Corrupt JPEG data: 5 extraneous bytes before marker 0xd9\n", b"premature end"):
        damaged = pytest.raises(
            MedarError, match=r"a\.dcm: its compressed pixels are damaged \(.*\);"
        )
        with damaged, decoding(path):
            os.write(2, text)
    named = pytest.warns(
        UserWarning, match=r"a\.dcm: while its pixels were decoded: Unknown colour$"
    )
    with named, decoding(path):
        os.write(2, b"Unsupported JPEG data precision 12\nUnknown colour\nand more")
    with decoding(path):
        os.write(2, b"Unsupported JPEG data precision 12\n")
    with decoding(path):
        pass
    with pytest.raises(ValueError, match="other"), decoding(path):
        raise ValueError("other")
    os.write(2, b"afterwards")
    assert capfd.readouterr().err == "afterwards"


def test_threads_decode_one_after_the_other(tmp_path, capfd):
    """Overlapping, the second would restore the first one's file, and standard error be lost."""
    inside, entered = threading.Event(), threading.Event()

    def other():
        inside.wait(5)
        with decoding(tmp_path / "b.dcm"):
            entered.set()

    thread = threading.Thread(target=other)
    thread.start()
    with decoding(tmp_path / "a.dcm"):
        inside.set()
        assert not entered.wait(0.05)
    thread.join(5)
    assert entered.is_set()
    os.write(2, b"afterwards")
    assert capfd.readouterr().err == "afterwards"


def test_a_damaged_header_of_compressed_pixels(tmp_path, capfd):
    """GDCM reads it with the tags already."""
    for k, made in enumerate(classic_slices(STACK)):
        compressed(made, "JPEG", tmp_path).save_as(tmp_path / f"{k}.dcm", enforce_file_format=True)
    path = tmp_path / "3.dcm"
    content = path.read_bytes()
    table = content.index(b"\xff\xc4\x00") + 2
    path.write_bytes(content[:table] + b"\x04" + content[table + 1 :])
    assert read_slice(path) is None
    assert read_slice(tmp_path / "2.dcm") is not None
    assert capfd.readouterr().err == ""
