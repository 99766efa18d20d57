"""`medar synthesize` from the command line."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medar.synthesis import samples

from ..synthesis.tiny import tiny_model, tiny_tokenizer

Medar = Callable[..., Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a tiny generator."""
    folder = tmp_path_factory.mktemp("run")
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(folder / "model", tokenizer)
    return folder


def file(
    path: Path, voxels: Any, sides: tuple[float, float, float], dtype: type = np.int16
) -> Path:
    """A NIfTI file with permuted axes, the first of which points left."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2] = sides[0], -sides[1], sides[2]
    affine[:, 3] = 11.0, -4.0, 30.0, 1.0
    nib.save(nib.Nifti1Image(np.asarray(voxels).astype(dtype), affine), path)
    return path


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A CT of int16 in the orientation SLA."""
    voxels = np.random.default_rng(0).integers(-900, 900, (9, 18, 15))
    return file(tmp_path / "scan.nii.gz", voxels, (2.0, 1.0, 1.0))


def test_volumes_are_written_with_their_records(medar: Medar, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call = ["synthesize", model, out, "-n", 3, "--seed", 4, "--class", "liver", "--set", "age=61"]
    result = medar(
        *call, "--guidance-scale", "1.5", "--top-k", "0,8,4", "--passes", "1,4,2",
        "--precision", "fp32", "--preview",
    )  # fmt: skip
    assert (result.code, result.out) == (0, f"{out}: 3 volumes made, 0 kept\n")
    names = [
        f"sample_000{k}{end}" for k in range(3) for end in (".json", ".nii.gz", "_label.nii.gz")
    ]
    assert sorted(path.name for path in out.iterdir()) == [
        "contact_sheet.png",
        "preview.png",
        *names,
    ]
    for index in range(3):
        about = json.loads((out / f"sample_000{index}.json").read_text())
        assert about["synthetic"] is True
        assert (about["seed"], about["attributes"]) == (4 + index, {"organ": "liver", "age": 61.0})
        assert (about["sampling"]["guidance_scale"], about["sampling"]["top_k"]) == (1.5, [0, 8, 4])
        assert about["sampling"]["passes"] == [1, 4, 2]
        assert about["precision"] == {"tokens": "fp32", "decoding": "fp32"}
        image, label = (nib.load(out / about[name]) for name in ("image", "label"))
        for nifti in (image, label):
            assert nifti.shape == (16, 16, 8)
            assert np.array_equal(nifti.affine, np.diag([1.0, 1.0, 2.0, 1.0]))
            assert bytes(nifti.header["descrip"]).startswith(b"synthetic, medar")
        values = image.get_fdata()
        assert (values.min(), values.max()) == (-100.0, 300.0)
        assert set(np.unique(label.get_fdata())) <= {0, 1, 4}


def test_the_same_command_resumes(medar: Medar, model: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    assert medar("synthesize", model, out, "-n", 2).code == 0
    before = (out / "sample_0000.nii.gz").stat().st_mtime_ns
    (out / "sample_0001.json").unlink()  # as an interrupted run leaves it
    result = medar("synthesize", model, out, "-n", 3, "--json")
    facts = json.loads(result.out)
    assert (result.code, facts["made"], facts["kept"]) == (0, 2, 1)
    assert facts["images"] == [str(out / f"sample_000{k}.nii.gz") for k in range(3)]
    assert facts["contact_sheet"] == str(out / "contact_sheet.png")
    assert (out / "sample_0000.nii.gz").stat().st_mtime_ns == before
    assert medar("synthesize", model, other, "-n", 3, "--batch-size", 1).code == 0
    for path in sorted(out.iterdir()):
        assert path.read_bytes() == (other / path.name).read_bytes(), path.name
    refusal = medar("synthesize", model, out, "-n", 2, "--class", "liver").refusal
    assert "sample_0000.json: attributes {}, but {'organ': 'liver'} is requested; choose" in refusal


def test_an_interrupted_run_keeps_whole_samples(
    medar: Medar, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write = samples.write_nifti

    def stop(path: Path, *arguments: Any, **options: Any) -> None:
        if path.name == "sample_0001_label.nii.gz":
            raise KeyboardInterrupt
        write(path, *arguments, **options)

    monkeypatch.setattr(samples, "write_nifti", stop)
    result = medar("synthesize", model, out, "-n", 3)
    assert (result.code, result.err) == (
        130,
        "medar: interrupted: the same command resumes\n",
    )
    assert [path.name for path in sorted(out.glob("*.json"))] == ["sample_0000.json"]
    monkeypatch.setattr(samples, "write_nifti", write)
    assert "2 volumes made, 1 kept" in medar("synthesize", model, out, "-n", 3).out


def test_inpainting_changes_only_the_region(
    medar: Medar, model: Path, scan: Path, tmp_path: Path
) -> None:
    before = nib.load(scan)
    hole = np.zeros(before.shape, bool)
    hole[3:6, 5:11, 4:9] = True
    drawn = tmp_path / "region.nii.gz"
    nib.save(nib.Nifti1Image(hole.astype(np.uint8), before.affine), drawn)
    # The file's axes are superior, left, anterior; the box is along right, anterior, superior.
    for name, region in (("drawn", drawn), ("box", "7:13,4:9,3:6")):
        result = medar(
            "synthesize", model, tmp_path / name, "-n", 2, "--inpaint", scan, "--region", region
        )
        assert result.code == 0
    for name in ("sample_0000", "sample_0001"):
        after = nib.load(tmp_path / "drawn" / f"{name}.nii.gz")
        assert np.array_equal(after.affine, before.affine)
        assert after.get_data_dtype() == before.get_data_dtype() == np.int16
        old, new = (np.asarray(image.dataobj) for image in (before, after))
        assert np.array_equal(new[~hole], old[~hole])
        assert (new[hole] != old[hole]).mean() > 0.9
        boxed = nib.load(tmp_path / "box" / f"{name}.nii.gz")
        assert np.array_equal(np.asarray(boxed.dataobj), new)
        label = nib.load(tmp_path / "drawn" / f"{name}_label.nii.gz")
        assert np.array_equal(label.affine, before.affine)
    about = json.loads((tmp_path / "box" / "sample_0000.json").read_text())
    assert (about["inpaint"]["file"], about["region"]) == (str(scan), "7:13,4:9,3:6")


def test_inpainting_in_scanner_coordinates(
    medar: Medar, model: Path, scan: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = medar("synthesize", model, out, "--inpaint", scan, "--region", "-2.5:1.5,0:6,32:38mm")
    assert result.code == 0
    old, new = (np.asarray(nib.load(p).dataobj) for p in (scan, out / "sample_0000.nii.gz"))
    changed = np.argwhere(old != new)
    assert changed.min(axis=0).tolist() == [1, 10, 4]
    assert changed.max(axis=0).tolist() == [3, 13, 9]


def test_upscaling(medar: Medar, model: Path, tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(-100, 300, (4, 8, 7))
    low, out = file(tmp_path / "low.nii.gz", voxels, (4.0, 2.0, 2.0)), tmp_path / "out"
    assert medar("synthesize", model, out, "--upscale", low).code == 0
    made = nib.load(out / "sample_0000.nii.gz")
    assert (made.shape, made.header.get_zooms()) == ((16, 14, 8), (1.0, 1.0, 2.0))
    assert json.loads((out / "sample_0000.json").read_text())["known_scales"] == 2
    # The corner of the field of view, right to left: 11 mm + 1 mm - 16 mm.
    assert np.allclose(made.affine @ [-0.5, -0.5, -0.5, 1], [-4.0, -5.0, 28.0, 1.0])


def test_masks(medar: Medar, model: Path, tmp_path: Path) -> None:
    values = np.zeros((8, 16, 16))
    values[2:5, 4:9, 4:12] = 4
    mask = file(tmp_path / "mask.nii.gz", values, (2.0, 1.0, 1.0), np.uint8)
    assert medar("synthesize", model, tmp_path / "out", "--mask", mask).code == 0
    made = nib.load(tmp_path / "out" / "sample_0000.nii.gz")
    assert np.allclose(made.affine[:3, 3], [-4.0, -4.0, 30.0])
    odd = file(tmp_path / "odd.nii.gz", values + 1, (2.0, 1.0, 1.0), np.uint8)
    result = medar("synthesize", model, tmp_path / "no", "--mask", odd).refusal
    assert f"{odd}: label values 5 are not among the plan's 0, 1, 4" in result


def test_a_folder_of_masks(medar: Medar, model: Path, tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    result = medar("synthesize", model, tmp_path / "no", "--mask", tmp_path / "maps").refusal
    assert "no volume found" in result
    for name, value in (("a", 1), ("b", 4)):
        values = np.zeros((8, 16, 16))
        values[2:5, 4:9, 4:12] = value
        file(tmp_path / "maps" / f"{name}.nii.gz", values, (2.0, 1.0, 1.0), np.uint8)
    call = ["synthesize", model, tmp_path / "out", "-n", 2, "--mask", tmp_path / "maps"]
    assert medar(*call).out == f"{tmp_path / 'out'}: 4 volumes made, 0 kept\n"
    assert medar(*call).out == f"{tmp_path / 'out'}: 0 volumes made, 4 kept\n"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a", "b", "contact_sheet.png"}
    for name in ("a", "b"):
        for sample in ("sample_0000", "sample_0001"):
            about = json.loads((tmp_path / "out" / name / f"{sample}.json").read_text())
            assert about["mask"]["file"] == str(tmp_path / "maps" / f"{name}.nii.gz")
            assert (tmp_path / "out" / name / about["label"]).exists()
    (tmp_path / "maps" / "aa.nii").write_bytes(b"damaged")
    result = medar(*call)
    assert (result.code, result.out) == (1, f"{tmp_path / 'out'}: 0 volumes made, 4 kept\n")
    assert re.search(r"aa\.nii: left out: .*aa\.nii: not a readable NIfTI file", result.err)
    (tmp_path / "maps" / "b.nii").touch()
    result = medar("synthesize", model, tmp_path / "no", "--mask", tmp_path / "maps").refusal
    assert "has the same name as b.nii" in result
    single = tmp_path / "one"
    assert medar("synthesize", model, single, "--mask", tmp_path / "maps" / "b.nii.gz").code == 0
    alone, among = (
        nib.load(folder / "sample_0000.nii.gz").get_fdata()
        for folder in (single, tmp_path / "out" / "b")
    )
    assert np.array_equal(alone, among)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL", "SCAN"], ".nii.gz: is a file; OUT names a folder"),
        (["gone", "OUT"], "gone: no generator (neither a folder nor a model that comes with medar"),
        (["TOKENIZER", "OUT"], "class 'Tokenizer' is not a generator; expected Generator"),
        (["MODEL", "SCAN"], "is a file; OUT names a folder"),
        (["MODEL", "FULL"], "holds other files (other.txt ...)"),
        (["MODEL", "OUT", "-n", "0"], "n must be at least 1"),
        (["MODEL", "OUT", "--seed", "-1"], "seed must be at least 0"),
        (["MODEL", "OUT", "-n", "2", "--seed", str(2**63 - 1)], "must be below 2^63"),
        (["MODEL", "OUT", "--class", "heart"], "this model knows organ: liver, spleen, none; les"),
        (["MODEL", "OUT", "--class", "none"], "organ and lesion have this value"),
        (["MODEL", "OUT", "--set", "age"], "--set age: must be NAME=VALUE"),
        (["MODEL", "OUT", "--set", "age=1", "--set", "age=2"], "age is already set to 1"),
        (["MODEL", "OUT", "--set", "sex=f"], "attribute 'sex'"),
        (
            ["MODEL", "OUT", "--passes", "many"],
            "--passes many: must be auto, an integer, or one per scale such as 4,2,1",
        ),
        (["MODEL", "OUT", "--passes", "0"], "passes must be at least 1, got 0"),
        (["MODEL", "OUT", "--passes", "2,1"], "passes has 2 values, the model 3 scales"),
        (["MODEL", "OUT", "--top-p", "2"], "top_p must be at most 1, got 2.0"),
        (["MODEL", "OUT", "--temperature", "nan"], "temperature must be finite"),
        (["MODEL", "OUT", "--temperature", "hot"], "--temperature hot: must be auto, a number"),
        (
            ["MODEL", "OUT", "--class", "liver", "--guidance-scale", "inf"],
            "guidance_scale must be finite",
        ),
        (
            ["MODEL", "OUT", "--class", "liver", "--guidance-scale", "2", "--guidance-from", "3"],
            "no scale",
        ),
        (["MODEL", "OUT", "--top-k", "a"], "--top-k a: must be a number"),
        (["MODEL", "OUT", "--temperature", "1,1"], "temperature has 2 values"),
        (["MODEL", "OUT", "--batch-size", "0"], "batch size must be at least 1"),
        (["MODEL", "OUT", "--inpaint", "SCAN"], "inpaint without region"),
        (["MODEL", "OUT", "--inpaint", "SCAN", "--region", "x"], "neither a file nor a box"),
        (["MODEL", "OUT", "--upscale", "SCAN"], "hardly coarser than the plan's"),
        (["MODEL", "OUT", "--upscale", "gone.nii"], "gone.nii: no such file"),
        (["MODEL", "OUT", "--mask", "SCAN"], "label values"),
        (["MODEL", "OUT", "--device", "tpu"], "device"),
    ],
)
def test_invalid_arguments(
    medar: Medar, model: Path, scan: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "other.txt").write_text("mine")
    known = {
        "MODEL": model,
        "TOKENIZER": model / "model" / "tokenizer",
        "OUT": tmp_path / "out",
        "FULL": tmp_path / "full",
        "SCAN": scan,
    }
    assert (
        message
        in medar("synthesize", *(known.get(argument, argument) for argument in arguments)).refusal
    )
    assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["other.txt"]


def test_drafts_and_their_continuation(medar: Medar, model: Path, tmp_path: Path) -> None:
    drafts, out, whole = tmp_path / "drafts", tmp_path / "out", tmp_path / "whole"
    result = medar("synthesize", model, drafts, "-n", 3, "--class", "liver", "--until-scale", 1)
    assert (result.code, result.out) == (0, f"{drafts}: 3 drafts made, 0 kept\n")
    assert (drafts / "contact_sheet.png").exists()
    assert not list(drafts.glob("sample*"))
    chosen = ["--continue", drafts / "draft_0002", "--continue", drafts / "draft_0000.nii.gz"]
    assert medar("synthesize", model, out, *chosen).code == 0
    assert medar("synthesize", model, whole, "--seed", 2, "--class", "liver").code == 0
    assert (out / "sample_0000.nii.gz").read_bytes() == (whole / "sample_0000.nii.gz").read_bytes()
    assert [json.loads((out / f"sample_000{k}.json").read_text())["seed"] for k in (0, 1)] == [2, 0]
    result = medar("synthesize", model, tmp_path / "other", *chosen, "--seed", 3)
    assert (result.code, "--seed does not go with --continue" in result.err) == (2, True)
    result = medar("synthesize", model, tmp_path / "other", "--continue", drafts / "draft_0009")
    assert (result.code, "draft_0009.json is missing" in result.err) == (2, True)
    assert not (tmp_path / "other").exists()
