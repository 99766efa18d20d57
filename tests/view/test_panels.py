"""Volumes converted for the page."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medar.errors import MedarError
from medar.view.files import VolumeFile
from medar.view.panels import make_panels, overlap, parse_window
from medar.volume import ReadOptions, Volume, read_volume
from medar.volume.display import SOFT_TISSUE

OPTIONS = ReadOptions()


def unpacked(body: bytes, folder: Path, *, labels: bool = False) -> Volume:
    path = folder / "panel.nii.gz"
    path.write_bytes(body)
    return read_volume(path, labels=labels)


@pytest.mark.parametrize("factor", [1.0, 0.37])
def test_voxels_and_grid_equal_the_file(factor: float, write: Any, tmp_path: Path) -> None:
    path = write("v.nii.gz", factor * np.arange(60, dtype=np.float32).reshape(3, 4, 5))
    panel = make_panels([VolumeFile(image=path)], OPTIONS)[0]
    shown, read = unpacked(panel.image, tmp_path), read_volume(path)
    np.testing.assert_array_equal(shown.array, read.array)
    np.testing.assert_allclose(shown.affine, read.affine, atol=1e-5)
    assert shown.provenance is not None
    assert shown.provenance.dtype == ("int16" if factor == 1.0 else "float32")


def test_label_indices_map_back_to_values(write: Any, label: Any, tmp_path: Path) -> None:
    shown = VolumeFile(image=write("v.nii.gz"), label=write("l.nii.gz", label))
    panel = make_panels([shown], OPTIONS, names={300: "liver"})[0]
    values = np.array([0, *(label["value"] for label in panel.facts["labels"])])
    assert panel.label is not None
    np.testing.assert_array_equal(
        values[unpacked(panel.label, tmp_path, labels=True).array[0]], label
    )
    assert [label["name"] for label in panel.facts["labels"]] == ["", "liver"]
    # 3 x 6 x 3 voxels of 1.5 x 1 x 2 mm
    assert panel.facts["labels"][1]["ml"] == pytest.approx(0.162)


def test_the_crosshair_starts_in_a_label(write: Any, label: Any) -> None:
    label[label == 2] = 0
    shown = VolumeFile(image=write("v.nii.gz"), label=write("l.nii.gz", label))
    facts = make_panels([shown], OPTIONS)[0].facts
    index = np.linalg.inv(read_volume(shown.image).affine) @ [*facts["start"], 1.0]
    assert label[tuple(np.rint(index[:3]).astype(int))] == 300


def test_an_image_is_not_a_label_map(write: Any) -> None:
    path = write("v.nii.gz", np.arange(1000, dtype=np.int16).reshape(10, 10, 10))
    with pytest.raises(MedarError, match="1000 different values"):
        make_panels([VolumeFile(image=path, label=path)], OPTIONS)


def test_channels_become_panels(tmp_path: Path, write: Any) -> None:
    array = np.stack([np.zeros((3, 4, 5)), np.ones((3, 4, 5))]).astype(np.float32)
    path = write("v.nii.gz", array)
    panels = make_panels([VolumeFile(image=path)], ReadOptions(channels=True))
    assert [panel.facts["title"] for panel in panels] == [f"v.nii.gz, channel {k}" for k in (0, 1)]
    assert [unpacked(panel.image, tmp_path).array.max() for panel in panels] == [0, 1]
    with pytest.raises(MedarError, match="channels"):
        make_panels([VolumeFile(image=path)], OPTIONS)


def test_far_volumes_do_not_overlap(write: Any) -> None:
    there = np.diag([1.0, 1.0, 1.0, 1.0])
    there[:3, 3] = 500.0
    near, far = write("near.nii.gz"), write("far.nii.gz", affine=there)
    panels = make_panels(
        [VolumeFile(image=near), VolumeFile(image=near), VolumeFile(image=far)], OPTIONS
    )
    assert overlap(panels[:2])
    assert not overlap(panels)


def test_windows() -> None:
    assert parse_window("40/400") == parse_window("soft") == (-160.0, 240.0)
    assert parse_window("-600/1500") == (-1350.0, 150.0)
    # The last ones have a width that is lost in rounding, and an end beyond a graphics card.
    wrong = ("40", "40/0", "a/b", "40/inf", "", "40/-400", "softer", "40/1e-30", "-1.7e308/3e308")
    for text in wrong:
        with pytest.raises(MedarError, match="LEVEL/WIDTH"):
            parse_window(text)
    assert parse_window("soft") == SOFT_TISSUE
