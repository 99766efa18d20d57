"""`medar data phantoms` from the command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Medar = Callable[..., Any]


def test_phantoms_form_a_valid_data_set_and_are_replaced(medar: Medar, tmp_path: Path) -> None:
    folder = tmp_path / "phantoms"
    result = medar("data", "phantoms", folder, "--n", "2", "--spacing", "20")
    assert (result.code, result.out.strip()) == (0, f"{folder}: 2 CT phantoms")
    medar("data", "phantoms", folder, "--n", "1", "--spacing", "20", "--modality", "mr")
    assert len(list((folder / "imagesTr").iterdir())) == 1
    assert medar("data", "check", folder, "--deep").code == 0


def test_paired_phantoms_are_valid_data_sets_with_the_same_cases(
    medar: Medar, tmp_path: Path
) -> None:
    folder = tmp_path / "phantoms"
    for _ in range(2):
        result = medar("data", "phantoms", folder, "--paired", "--n", "1", "--spacing", "20")
        assert result.out.strip() == f"{folder}: 1 phantom, each as ct, t1w, t2w, pdw"
    names = [sorted(p.name for p in one.rglob("*.nii.gz")) for one in folder.iterdir()]
    assert len(names) == 4
    assert all(one == names[0] for one in names)
    assert medar("data", "check", folder / "t2w", "--deep").code == 0
    assert "omit one" in medar("data", "phantoms", folder, "--paired", "--modality", "mr").refusal
    (folder / "notes.txt").touch()
    assert "holds notes.txt" in medar("data", "phantoms", folder, "--paired").refusal


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--n 0", "n must be at least 1, got 0"),
        ("--spacing 0", "mm, got 0"),
        ("--spacing nan", "mm, got nan"),
        ("--seed -1", "seed must be at least 0, got -1"),
        ("--modality pet", "pet"),
    ],
)
def test_invalid_values_give_one_line_and_write_nothing(
    medar: Medar, tmp_path: Path, arguments: str, message: str
) -> None:
    folder = tmp_path / "phantoms"
    assert message in medar("data", "phantoms", folder, *arguments.split()).refusal
    assert not folder.exists()


def test_other_data_are_never_replaced(medar: Medar, data: Path) -> None:
    before = sorted(data.rglob("*"))
    assert "not part of a phantom data set" in medar("data", "phantoms", data).refusal
    assert sorted(data.rglob("*")) == before
