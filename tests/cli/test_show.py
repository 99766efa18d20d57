"""`medar data show` from the command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Medar = Callable[..., Any]
Write = Callable[..., Path]
PNG = b"\x89PNG"


def test_a_file_is_drawn_with_its_label(medar: Medar, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "c0.png"
    label = data / "labels" / "c0.nii.gz"
    answer = medar("data", "show", data / "images" / "c0.nii.gz", "--label", label, "--out", out)
    assert (answer.code, answer.out.strip()) == (0, str(out))
    assert out.read_bytes().startswith(PNG)


def test_prepared_cases_and_their_round_trip_are_drawn(
    medar: Medar, data: Path, tmp_path: Path
) -> None:
    prepared = tmp_path / "prepared"
    assert medar("data", "prepare", data, "--out", prepared).code == 0
    for arguments in ([], ["c2"], ["c2", "--inverse"]):
        out = tmp_path / f"{len(arguments)}.png"
        assert medar("data", "show", *arguments, "--data", prepared, "--out", out).code == 0
        assert out.read_bytes().startswith(PNG)
    assert "no case 'c9'" in medar("data", "show", "c9", "--data", prepared).refusal
    (prepared / "plan.yaml").write_text(
        (prepared / "plan.yaml").read_text().replace("centre: image", "centre: foreground")
    )
    assert "has changed" in medar("data", "show", "--data", prepared).refusal


@pytest.mark.parametrize("sides", [(1, 1, 1), (3, 40, 3), (1, 1, 9)])
def test_the_thinnest_volumes_are_drawn(
    medar: Medar, write: Write, tmp_path: Path, sides: tuple[int, int, int]
) -> None:
    path = write("thin.nii", np.random.default_rng(0).normal(size=sides).astype(np.float32))
    assert medar("data", "show", path, "--out", tmp_path / "thin.png").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to show"),
        (["nowhere.nii"], "nowhere.nii: no such file"),
        (["images/c0.nii.gz", "--window", "5", "1"], "--window 5 1"),
        (["images/c0.nii.gz", "--window", "nan", "1"], "--window nan 1"),
        (["images/c0.nii.gz", "--out", "x.jpg"], "written as .png"),
        (["images/c0.nii.gz", "--label", "nowhere.nii"], "nowhere.nii"),
        (["images/c0.nii.gz", "--inverse"], "--inverse needs a folder"),
        (["c0", "--data", ".", "--inverse"], "--inverse needs a folder"),
        (["c0", "--data", ".", "--label", "x"], "--label goes with a volume file"),
        (["c9", "--data", "."], "no case 'c9'"),
        (["images"], "no DICOM image"),
    ],
)
def test_invalid_inputs_give_one_line(
    medar: Medar, data: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(data)
    assert message in medar("data", "show", *arguments).refusal
    assert not list(data.glob("*.png"))


def test_an_unwritable_image_file_is_named(medar: Medar, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    target = tmp_path / "file" / "x.png"
    refusal = medar("data", "show", data / "images" / "c0.nii.gz", "--out", target).refusal
    assert ".tmp-" not in refusal
