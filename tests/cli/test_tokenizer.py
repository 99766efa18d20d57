"""`medar tokenizer` from the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from medar.data.plan import IntensityRule, Plan
from medar.data.prepared import Prepared
from medar.tokenizer.codebooks import CodebookSettings
from medar.tokenizer.network import NetworkConfig
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.tokenizer import Tokenizer, TokenizerConfig
from medar.tokenizer.tokens import TokenDataset
from medar.version import __version__
from medar.volume import description_of, read_header
from medar.volume.marks import RECONSTRUCTED

Medar = Callable[..., Any]


def save_model(
    folder: Path, *, labels: bool = False, rule: str = "window", names: bool = True
) -> Path:
    plan = Plan(
        spacing=(1.0, 1.0, 2.0),
        mode="volume",
        size=(8, 8, 4),
        downsampling=(2, 2, 2),
        intensity={"CT": IntensityRule(kind=rule, low=0.0, high=100.0)},  # type: ignore[arg-type]
        labels={1: "a", 2: "b"} if names else {},
    )
    torch.manual_seed(0)
    config = TokenizerConfig(
        schedule=ScaleSchedule(grids=((1, 1, 1), (4, 4, 2))),
        network=NetworkConfig(
            width=4, width_multipliers=(1,), code_width=4, downsampling=(2, 2, 2), labels=2 * labels
        ),
        codebook=CodebookSettings(kind="fsq", size=16, width=4),
    )
    Tokenizer(config, plan).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare in this process."""
    monkeypatch.setattr("medar.data.prepare.default_workers", lambda: 1)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The folder of a tiny tokenizer without a label head."""
    return save_model(tmp_path / "model")


def test_round_trip(medar: Medar, data: Path, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", labels=True)
    out, back, label = (tmp_path / name for name in ("tokens", "back.nii.gz", "label.nii.gz"))
    result = medar("tokenizer", "encode", data, out, "--model", model, "--variants", 1, "--json")
    facts = json.loads(result.out)
    assert (result.code, facts["made"], facts["kept"], facts["failed"]) == (0, 4, 0, {})
    again = medar("tokenizer", "encode", data, out, "--model", model, "--variants", 1)
    assert again.out == f"{out}: 0 cases encoded, 4 kept, 0 skipped\n"
    pyramid = out / "cases" / "c0.safetensors"
    result = medar("tokenizer", "decode", pyramid, back, "--labels", label)
    assert result.code == 0
    assert result.out == f"{back}: 8x10x6 voxels on its own grid\n"
    source = nib.load(data / "images" / "c0.nii.gz")
    for path in (back, label):
        made = nib.load(path)
        assert made.shape == source.shape
        assert np.array_equal(made.affine, source.affine)
    assert set(np.unique(nib.load(label).get_fdata())) <= {0, 1, 2}
    result = medar("tokenizer", "decode", pyramid, back, "--grid", "prepared", "--variant", 1)
    assert result.out == f"{back}: 8x8x4 voxels on the plan's grid\n"


def test_labels_unknown_to_the_tokenizer_are_left_out(
    medar: Medar, data: Path, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "model", names=False)
    call = ["tokenizer", "encode", data, tmp_path / "tokens", "--model", model]
    result = medar(*call)
    assert (result.code, result.out.count("4 cases encoded")) == (0, 1)
    assert "has a label map with values that the tokenizer's plan names" in (
        medar(*call, "--maps").refusal
    )


def test_label_maps_are_stored_with_the_tokens(medar: Medar, data: Path, tmp_path: Path) -> None:
    model, out = save_model(tmp_path / "model"), tmp_path / "tokens"
    assert medar("tokenizer", "encode", data, out, "--model", model, "--maps").code == 0
    found = TokenDataset(out, maps=True)[0]["map"]
    assert found.shape == (8, 8, 4)
    assert set(found.unique().tolist()) == {0, 1, 2}


def test_reconstruct(medar: Medar, model: Path, data: Path, tmp_path: Path) -> None:
    source, out = data / "images" / "c0.nii.gz", tmp_path / "out.nii.gz"
    result = medar("tokenizer", "reconstruct", model, source, out)
    assert result.code == 0
    assert result.out.startswith(f"{out}: PSNR ")
    assert result.out.count("\n") == 1
    # The plan's grid reaches 8 of 10 rows and 4 of 6 slices.
    assert "the 46.7% of voxels outside it have the lowest intensity" in result.out
    facts = json.loads(medar("tokenizer", "reconstruct", model, source, out, "--json").out)
    assert set(facts) == {"out", "labels", "psnr", "outside"}
    assert facts["outside"] == pytest.approx(7 / 15)
    before, after = nib.load(source), nib.load(out)
    assert (after.shape, after.affine.tolist()) == (before.shape, before.affine.tolist())


@pytest.mark.parametrize("ending", [".nii", ".nrrd", ".mha"])
def test_reconstructions_say_what_they_are(
    medar: Medar, model: Path, data: Path, tmp_path: Path, ending: str
) -> None:
    source, out = data / "images" / "c0.nii.gz", tmp_path / f"out{ending}"
    assert medar("tokenizer", "reconstruct", model, source, out).code == 0
    assert description_of(out) == RECONSTRUCTED == f"reconstructed, medar {__version__}"
    assert read_header(out).grid.matches(read_header(source).grid)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reconstruct", "MODEL", "IN", "out.png"], "out.png: volumes are written as .nii"),
        (["reconstruct", "MODEL", "IN", "o.nii", "--labels", "o.nii"], "need separate files"),
        (["reconstruct", "MODEL", "IN", "o.nii", "--labels", "l.nii"], "has no label head"),
        (["reconstruct", "MODEL", "IN", "o.nii", "--upto", "0"], "upto must be from 1 to 2, got 0"),
        (["reconstruct", "MODEL", "IN", "o.nii", "--upto", "3"], "upto must be from 1 to 2, got 3"),
        (["reconstruct", "MODEL", "gone.nii", "o.nii"], "gone.nii"),
        (
            ["reconstruct", "gone", "IN", "o.nii"],
            "gone: no tokenizer (neither a folder nor a model",
        ),
        (["reconstruct", "MODEL", "IN", "o.nii", "--device", "tpu"], "device"),
        (["decode", "gone.safetensors", "o.nii", "--model", "MODEL"], "gone.safetensors"),
        (["decode", "IN", "o.nii", "--model", "MODEL"], "not a safetensors file"),
        (["decode", "WEIGHTS", "o.nii", "--model", "MODEL"], "not a token pyramid"),
        (["decode", "gone.safetensors", "out.png"], "out.png: volumes are written as .nii"),
        (["encode", "gone", "tokens", "--model", "MODEL"], "gone"),
        (
            ["encode", "DATA", "tokens", "--model", "gone"],
            "gone: no tokenizer (neither a folder nor a model",
        ),
        (
            ["encode", "DATA", "tokens", "--model", "MODEL", "--variants", "-1"],
            "variants must be",
        ),
        (
            ["encode", "DATA", "tokens", "--model", "MODEL", "--seed", "-1"],
            "seed must be",
        ),
        (
            ["encode", "DATA", "tokens", "--model", "MODEL", "--workers", "-1"],
            "workers must be",
        ),
        (["encode", "DATA", "tokens", "--model", "MODEL", "--augmentation", "a"], "--variants"),
        (["encode", "DATA", "tokens", "--model", "MODEL", "--split", "test"], "split"),
        (["encode", "DATA", "IN", "--model", "MODEL"], "must be a folder, got a file"),
    ],
)
def test_invalid_arguments(
    medar: Medar, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"c{k},train\n" for k in range(4))
    (data / "attributes.csv").write_text("id,split\n" + rows)
    known = {
        "MODEL": model,
        "WEIGHTS": model / "model.safetensors",
        "DATA": data,
        "IN": data / "images" / "c0.nii.gz",
    }
    command, *others = arguments
    assert message in medar("tokenizer", command, *(known.get(a, a) for a in others)).refusal
    assert not list(tmp_path.glob("o.nii"))


def test_a_missing_entry_gives_one_line(
    medar: Medar, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "tokens"
    assert medar("tokenizer", "encode", data, out, "--model", model).code == 0
    prepared = Prepared(out / "prepared")
    traces = {case.id: prepared.trace(case) for case in map(prepared.__getitem__, range(4))}
    prepared.cache.path(prepared[1].image).unlink()
    call = ["tokenizer", "encode", out / "prepared", tmp_path / "again", "--model", model]
    assert medar(*call).refusal.startswith("medar: case c1")
    # An entry that is found missing only when its voxels are asked for.
    monkeypatch.setattr(Prepared, "trace", lambda _, case: traces[case.id])
    refusal = medar(*call).refusal
    assert refusal.startswith("medar: case c1 of ")
    assert "does not exist" in refusal


def test_unknown_intensities_give_a_note(medar: Medar, data: Path, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", rule="percentiles")
    out, back = tmp_path / "tokens", tmp_path / "back.nii"
    assert medar("tokenizer", "encode", data, out, "--model", model).code == 0
    loose = (out / "cases" / "c0.safetensors").rename(tmp_path / "loose.safetensors")
    result = medar("tokenizer", "decode", loose, back, "--model", model)
    assert result.code == 0
    assert result.err.count("\n") == 1
    assert "values run from 0 to 1000" in result.err
    assert np.array_equal(nib.load(back).header.get_zooms(), (1, 1, 2))
