"""`medar evaluate` on a generator: its samples, its edits, the label maps that it follows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medar.generator.folder import save_generator

from ..synthesis.tiny import tiny_model, tiny_tokenizer

Medar = Callable[..., Any]
Write = Callable[..., Path]


@pytest.fixture
def prepared(medar: Medar, write: Write, tmp_path: Path) -> Path:
    """Seven CT cases of 16 x 16 x 8 voxels of 1 x 1 x 2 mm with the labels 1 and 4."""
    label = np.zeros((16, 16, 8), np.uint8)
    label[2:7, 3:9, 2:6], label[9:13, 4:12, 1:6] = 1, 4
    splits = ["train"] * 4 + ["val"] + ["test"] * 2
    for number in range(len(splits)):
        noise = np.random.default_rng(number).normal(50, 60, label.shape) + 80 * (label > 0)
        write(f"set/images/c{number}.nii.gz", noise.astype(np.float32))
        write(f"set/labels/c{number}.nii.gz", np.roll(label, number % 3, axis=1))
    rows = "".join(f"c{k},{split}\n" for k, split in enumerate(splits))
    (tmp_path / "set" / "attributes.csv").write_text("id,split\n" + rows)
    out = tmp_path / "prepared"
    done = medar(
        "data", "prepare", tmp_path / "set", "--out", out, "--size", 16, 16, 8,
        "--downsampling", 4, 4, 2, "--spacing", 1, 1, 2, "--modality", "CT",
    )  # fmt: skip
    assert done.code == 0, done.err
    return out


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that left a tiny generator, which takes label maps."""
    folder, tokenizer = tmp_path_factory.mktemp("run"), tiny_tokenizer()
    save_generator(folder / "model", tiny_model(tokenizer), tokenizer)
    return folder


def test_a_generator_is_judged_by_its_samples(
    medar: Medar, model: Path, prepared: Path, tmp_path: Path
) -> None:
    call = ["evaluate", "generation", model, prepared, "--samples", 3, "--seed", 5]
    said = medar(*call, "--guidance-scale", 1.5, "--top-k", 4, "--json", "--out", tmp_path / "out")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert (found["volumes"], found["held_out"], found["reference"]) == (3, 2, 4)
    assert "shape-v1" in found["distances"]  # label maps come from the same tokens
    assert min(found["seconds_per_volume"], found["peak_memory"]) > 0
    told = found["protocol"]["generator"]
    assert (told["seeds"], told["sampling"]["guidance_scale"]) == ([5, 7], 1.5)
    assert told["conditions"].startswith("attributes and label maps of held-out cases")
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == found
    assert (tmp_path / "out" / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")


def test_editing_is_told_to_people_and_programs(medar: Medar, model: Path, prepared: Path) -> None:
    call = ["evaluate", "editing", model / "model", prepared, "--samples", 2, "--box", 0.4]
    said = medar(*call, "--limit", 1)
    assert said.code == 0, said.err
    for word in (
        "1 cases of the split test",
        "smooth filling",
        "trilinear",
        "editing-v1",
        "note: 1",
    ):
        assert word in said.out, said.out
    found = json.loads(medar(*call, "--json", "--split", "val", "--known-scales", 2).out)
    assert (found["cases"], found["split"], found["known_scales"]) == (1, "val", 2)
    assert found["inpainting"]["similarity"].keys() > {"mean filling", "sampled", "reconstructed"}


def test_conditions_are_told_and_the_judge_is_kept(
    medar: Medar, model: Path, prepared: Path, tmp_path: Path
) -> None:
    call = ["evaluate", "conditions", model, prepared, "--judge", tmp_path / "judge"]
    said = medar(*call, "--max-minutes", 0.01, "--device", "cpu")
    assert said.code == 0, said.err
    for word in (
        "Dice with 2 label maps",
        "samples",
        "real volumes",
        "another case's",
        "conditions-v2",
    ):
        assert word in said.out, said.out
    again = medar(*call, "--max-minutes", 0.01, "--device", "cpu", "--json")
    assert "nothing is left to do" in again.err
    found = json.loads(again.out)
    assert found["cases"] == 2
    assert len(found["samples"]) == 2


def test_what_cannot_be_judged_is_one_line(
    medar: Medar, model: Path, prepared: Path, tmp_path: Path, write: Write
) -> None:
    write("files/a.nii.gz")
    tokenizer = tiny_tokenizer()
    save_generator(tmp_path / "plain", tiny_model(tokenizer, maps=False), tokenizer)
    judge = ["--judge", tmp_path / "judge"]
    for arguments, said in (
        (
            ["generation", tmp_path / "files", prepared, "--guidance-scale", 1],
            "files: holds files, no generator",
        ),
        (["generation", model, prepared, "--temperature", "1,1"], "temperature has 2 values"),
        (["generation", model / "model" / "tokenizer", prepared], "is not a generator"),
        (["generation", model, prepared, "--samples", 0], "samples must be at least 1, got 0"),
        (["editing", model, prepared, "--factor", 5], "factor must"),
        (["editing", tmp_path, prepared], "no generator"),
        (["conditions", tmp_path / "plain", prepared, *judge], "plain: was trained without label"),
        (["conditions", model, prepared, *judge, "--max-minutes", 0], "minutes"),
    ):
        assert said in medar("evaluate", *arguments).refusal
