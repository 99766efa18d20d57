"""`medar translate` from the command line."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medar.data.source import EACH_VOLUME, Source

from ..synthesis.tiny import tiny_model, tiny_tokenizer
from .test_synthesize import file

Medar = Callable[..., Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a tiny generator of CT from MR."""
    folder = tmp_path_factory.mktemp("run")
    tokenizer = tiny_tokenizer()
    source = Source(modality="MR", intensity=EACH_VOLUME)
    tiny_model(tokenizer, source=source).save_pretrained(folder / "model", tokenizer)
    return folder


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Two MR volumes of int16 in the orientation SLA."""
    (tmp_path / "scans").mkdir()
    for name, seed in (("a", 0), ("b", 1)):
        voxels = np.random.default_rng(seed).integers(0, 900, (8, 16, 15))
        file(tmp_path / "scans" / f"{name}.nii.gz", voxels, (2.0, 1.0, 1.0))
    return tmp_path / "scans"


def test_a_file_is_translated_on_its_own_grid(medar: Medar, model: Path, scans: Path) -> None:
    given, out = scans / "a.nii.gz", scans.parent / "out"
    call = ["translate", model, given, out, "-n", 2, "--seed", 4, "--set", "age=61"]
    result = medar(*call)
    assert (result.code, result.out) == (0, f"{out}: 2 volumes made, 0 kept\n")
    assert result.err == ""
    for number in range(2):
        about = json.loads((out / f"sample_000{number}.json").read_text())
        assert about["seed"] == 4 + number
        assert about["attributes"] == {"age": 61.0}
        assert about["source"]["file"] == str(given)
        made, scan = nib.load(out / about["image"]), nib.load(given)
        np.testing.assert_allclose(made.affine, scan.affine)
        assert made.shape == scan.shape
        values = made.get_fdata()
        assert (values.min(), values.max()) == (-100.0, 300.0)
    assert (out / "contact_sheet.png").exists()
    assert medar(*call).out == f"{out}: 0 volumes made, 2 kept\n"
    other = medar("translate", model, scans / "b.nii.gz", out, "-n", 2, "--seed", 4)
    assert "is requested; choose another folder" in other.refusal


def test_a_folder_is_translated_and_unreadable_files_are_left_out(
    medar: Medar, model: Path, scans: Path
) -> None:
    out = scans.parent / "out"
    call = ["translate", model, scans, out, "--model-spacing"]
    assert medar(*call).code == 0
    assert {path.name for path in out.iterdir()} == {"a", "b", "contact_sheet.png"}
    assert nib.load(out / "b" / "sample_0000.nii.gz").header.get_zooms() == (1.0, 1.0, 2.0)
    file(scans / "a_label.nii.gz", np.ones((8, 16, 15)), (2.0, 1.0, 1.0), np.uint8)
    (scans / "c.nii").write_bytes(b"damaged")
    file(scans / "d.nii", np.ones((4, 4, 4)), (2.0, 1.0, 1.0))
    result = medar(*call, "--json")
    assert result.code == 1
    found = json.loads(result.out)
    assert (found["made"], found["kept"]) == (0, 2)
    assert set(found["failed"]) == {str(scans / "c.nii"), str(scans / "d.nii")}
    assert re.search(r"d\.nii: left out: .*d\.nii: every voxel is 1", result.err)


def test_a_manifest_states_modalities(medar: Medar, model: Path, scans: Path) -> None:
    lines = [
        {"id": f"{name}{modality}", "image": f"scans/{name}.nii.gz", "modality": modality}
        for name, modality in (("a", "MR"), ("b", "CT"))
    ]
    manifest = scans.parent / "both.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = medar("translate", model, manifest, scans.parent / "out")
    assert result.code == 1
    assert "CT, but this generator translates MR" in result.err
    assert (scans.parent / "out" / "aMR" / "sample_0000.nii.gz").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL", "gone.nii", "OUT"], "gone.nii: no such file"),
        (["MODEL", "SCAN", "SCAN"], "is a file; OUT names a folder"),
        (["MODEL", "EMPTY", "OUT"], "empty: no volume found; medar reads"),
        (["MODEL", "SCAN", "OUT", "-n", "0"], "n must be at least 1"),
        (["MODEL", "SCAN", "OUT", "--set", "sex=f"], "attribute 'sex'"),
        (["MODEL", "SCAN", "OUT", "--modality", "MR"], "no intensity rule for 'MR'"),
        (["PLAIN", "SCAN", "OUT"], "trained without source volumes (condition.map is 'label')"),
    ],
)
def test_invalid_calls_give_one_line(
    medar: Medar, model: Path, scans: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(tmp_path / "plain", tokenizer)
    (tmp_path / "empty").mkdir()
    paths = {
        "MODEL": model, "SCAN": scans / "a.nii.gz", "OUT": tmp_path / "out",
        "PLAIN": tmp_path / "plain", "EMPTY": tmp_path / "empty",
    }  # fmt: skip
    result = medar("translate", *(paths.get(word, word) for word in arguments))
    assert message in result.refusal
    assert not (tmp_path / "out").exists()
