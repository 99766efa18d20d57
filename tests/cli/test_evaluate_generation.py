"""`medar evaluate generation` from the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Medar = Callable[..., Any]
Write = Callable[..., Path]


@pytest.fixture
def prepared(medar: Medar, write: Write, tmp_path: Path) -> Path:
    """Nine cases of 8 x 12 x 8 voxels with one label: five train, two val, two test."""
    label = np.zeros((8, 12, 8), np.uint8)
    label[2:5, 3:9, 2:6] = 1
    splits = ["train"] * 5 + ["val"] * 2 + ["test"] * 2
    for number in range(len(splits)):
        write(f"set/images/c{number}.nii.gz", noise(number))
        write(f"set/labels/c{number}.nii.gz", np.roll(label, number % 3, axis=1))
    rows = "".join(f"c{k},{split}\n" for k, split in enumerate(splits))
    (tmp_path / "set" / "attributes.csv").write_text("id,split\n" + rows)
    out = tmp_path / "prepared"
    done = medar(
        "data", "prepare", tmp_path / "set", "--out", out, "--size", 8, 12, 8,
        "--downsampling", 4, 4, 4, "--spacing", 1, 1, 2, "--modality", "MR",
    )  # fmt: skip
    assert done.code == 0, done.err
    return out


def noise(seed: int) -> Any:
    return np.random.default_rng(seed).normal(100, 20, (8, 12, 8)).astype(np.float32)


@pytest.fixture
def files(write: Write, tmp_path: Path) -> Path:
    """Three generated volumes with label maps, and a note that is no volume."""
    label = np.zeros((8, 12, 8), np.uint8)
    label[1:5, 3:8, 2:6] = 1
    for number in range(3):
        write(f"made/s{number}.nii.gz", noise(100 + number))
        write(f"made/s{number}_label.nii.gz", label)
    (tmp_path / "made" / "s0.json").write_text("{}")
    return tmp_path / "made"


def test_files_are_judged_and_drawn(
    medar: Medar, files: Path, prepared: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    said = medar("evaluate", "generation", files, prepared, "--json", "--out", out)
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert (found["volumes"], found["held_out"], found["reference"]) == (3, 2, 5)
    assert found["distances"].keys() == {"radiomics-v1", "texture-v1", "shape-v1"}
    assert json.loads((out / "report.json").read_text()) == found
    assert (out / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_is_read_by_people(medar: Medar, files: Path, prepared: Path) -> None:
    said = medar(
        "evaluate", "generation", files, prepared, "--split", "held-out", "--samples", 2,
        "--extractor", "texture-v1", "--seed", 3,
    )  # fmt: skip
    assert (said.code, said.err) == (0, "")
    words = (
        "2 volumes against 5", "4 others (all but", "texture-v1 (45)", "shape-v1", "MS-SSIM",
        "suspects", "note: 2 generated volumes", "generation-v1, seed 3",
    )  # fmt: skip
    for word in words:
        assert word in said.out, said.out
    assert "radiomics-v1" not in said.out


def test_copies_are_named(medar: Medar, prepared: Path, tmp_path: Path, write: Write) -> None:
    for number in range(3):
        write(f"copies/s{number}.nii.gz", noise(number))
    said = medar("evaluate", "generation", tmp_path / "copies", prepared)
    assert "suspected copy by voxels: volume 1 of c1" in said.out
    assert "shape-v1" not in said.out


def test_what_cannot_be_judged_is_one_line(
    medar: Medar, files: Path, prepared: Path, tmp_path: Path, write: Write
) -> None:
    (tmp_path / "empty").mkdir()
    write("half/a.nii.gz", noise(0))
    write("half/b.nii.gz", noise(1))
    write("half/b_label.nii.gz", np.ones((8, 12, 8), np.uint8))
    write("odd/a.nii.gz", noise(0))
    write("odd/a_label.nii.gz", np.full((8, 12, 8), 7, np.uint8))
    write("flat/a.nii.gz", np.ones((8, 12, 8), np.float32))
    for arguments, said in (
        ([tmp_path / "none", prepared], "none: no such folder"),
        ([tmp_path / "empty", prepared], "empty: contains no volumes"),
        ([files, tmp_path / "set"], "not a prepared data set"),
        ([tmp_path / "half", prepared], "a.nii.gz: has no label map"),
        ([tmp_path / "odd", prepared], "a_label.nii.gz: label values 7"),
        ([tmp_path / "flat", prepared], "a.nii.gz: every voxel is 1"),
        ([files, prepared, "--samples", 1], "at least 2 generated volumes are needed, got 1"),
        ([files, prepared, "--samples", 0], "samples must be at least 1, got 0"),
        ([files, prepared, "--batch", 0], "--batch 0"),
        ([files, prepared, "--extractor", "medicalnet-v1"], "needs its weights"),
        ([files, prepared, "--out", prepared / "plan.yaml"], "is a file"),
    ):
        assert said in medar("evaluate", "generation", *arguments).refusal


def test_patches_need_the_size_of_the_plan(
    medar: Medar, files: Path, prepared: Path, write: Write, tmp_path: Path
) -> None:
    out = tmp_path / "patches"
    done = medar(
        "data", "prepare", tmp_path / "set", "--out", out, "--size", 8, 8, 8,
        "--downsampling", 4, 4, 4, "--spacing", 1, 1, 2, "--modality", "MR", "--mode", "patch",
    )  # fmt: skip
    assert done.code == 0, done.err
    refused = medar("evaluate", "generation", files, out).refusal
    assert (
        "s0.nii.gz: 8 x 12 x 8 voxels at the plan's spacing, expected the plan's size 8 x 8 x 8"
        in refused
    )
