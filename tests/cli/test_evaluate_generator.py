"""`medar evaluate` on generated volumes and on a generator (samples, edits and label maps)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ..synthesis.tiny import tiny_model, tiny_tokenizer

Medar = Callable[..., Any]
Write = Callable[..., Path]


def noise(seed: int) -> Any:
    return np.random.default_rng(seed).normal(100, 20, (8, 12, 8)).astype(np.float32)


@pytest.fixture
def prepared(medar: Medar, write: Write, tmp_path: Path) -> Callable[..., Path]:
    """Write and prepare cases with the given images, label maps and splits."""

    def prepare(splits: list[str], images: list[Any], labels: list[Any], *options: object) -> Path:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            write(f"set/images/c{number}.nii.gz", image)
            write(f"set/labels/c{number}.nii.gz", label)
        rows = "".join(f"c{k},{split}\n" for k, split in enumerate(splits))
        (tmp_path / "set" / "attributes.csv").write_text("id,split\n" + rows)
        out = tmp_path / "prepared"
        done = medar(
            "data", "prepare", tmp_path / "set", "--out", out, "--spacing", 1, 1, 2, *options
        )
        assert done.code == 0, done.err
        return out

    return prepare


@pytest.fixture
def mr_set(prepared: Callable[..., Path]) -> Path:
    """Nine cases of 8 x 12 x 8 voxels with one label: five train, two val, two test."""
    label = np.zeros((8, 12, 8), np.uint8)
    label[2:5, 3:9, 2:6] = 1
    images = [noise(number) for number in range(9)]
    labels = [np.roll(label, number % 3, axis=1) for number in range(9)]
    options = ("--size", 8, 12, 8, "--downsampling", 4, 4, 4, "--modality", "MR")
    return prepared(["train"] * 5 + ["val"] * 2 + ["test"] * 2, images, labels, *options)


@pytest.fixture
def ct_set(prepared: Callable[..., Path]) -> Path:
    """Seven CT cases of 16 x 16 x 8 voxels of 1 x 1 x 2 mm with the labels 1 and 4."""
    label = np.zeros((16, 16, 8), np.uint8)
    label[2:7, 3:9, 2:6], label[9:13, 4:12, 1:6] = 1, 4
    noises = [np.random.default_rng(k).normal(50, 60, label.shape) for k in range(7)]
    images = [(image + 80 * (label > 0)).astype(np.float32) for image in noises]
    labels = [np.roll(label, number % 3, axis=1) for number in range(7)]
    options = ("--size", 16, 16, 8, "--downsampling", 4, 4, 2, "--modality", "CT")
    return prepared(["train"] * 4 + ["val"] + ["test"] * 2, images, labels, *options)


@pytest.fixture
def files(write: Write, tmp_path: Path) -> Path:
    """Three generated volumes with label maps, and a text file."""
    label = np.zeros((8, 12, 8), np.uint8)
    label[1:5, 3:8, 2:6] = 1
    for number in range(3):
        write(f"made/s{number}.nii.gz", noise(100 + number))
        write(f"made/s{number}_label.nii.gz", label)
    (tmp_path / "made" / "s0.json").write_text("{}")
    return tmp_path / "made"


def test_files_are_evaluated_and_drawn(
    medar: Medar, files: Path, mr_set: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = medar("evaluate", "generation", files, mr_set, "--json", "--out", out)
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert (found["volumes"], found["held_out"], found["reference"]) == (3, 2, 5)
    assert found["distances"].keys() == {"radiomics-v2", "texture-v2", "shape-v2"}
    assert json.loads((out / "report.json").read_text()) == found
    assert (out / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")


def test_the_text_report(medar: Medar, files: Path, mr_set: Path) -> None:
    result = medar(
        "evaluate", "generation", files, mr_set, "--split", "held-out", "--samples", 2,
        "--extractor", "texture-v2", "--seed", 3,
    )  # fmt: skip
    assert (result.code, result.err) == (0, "")
    words = (
        "2 volumes compared with 5", "4 others (all but", "texture-v2 (45)", "shape-v2", "MS-SSIM",
        "largest contributions to texture-v2: ", "power ratio", "grid artifact",
        "suspects", "note: 2 generated volumes", "generation-v2, seed 3",
    )  # fmt: skip
    for word in words:
        assert word in result.out, result.out
    assert "radiomics-v2" not in result.out


def test_turing_test_by_a_network_and_by_people(
    medar: Medar, files: Path, mr_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medar.evaluation.generation.discriminator.STEPS", 2)
    out = tmp_path / "out"
    result = medar("evaluate", "generation", files, mr_set, "--turing", "--out", out)
    assert result.code == 0, result.err
    for word in ("Turing test of", "synthetic and real", "two halves", "too few to say anything"):
        assert word in result.out
    found = json.loads((out / "report.json").read_text())["turing"]
    assert (found["volumes"], found["protocol"]["windows"]) == (3, "measured twice")
    rows = (out / "turing.csv").read_text().splitlines()
    assert (rows[0], len(rows)) == ("kind,volume,fold,score", 7)

    assert {path.name for path in (out / "readers").iterdir()} == {"sheet.png", "answers.csv"}
    key = [row.split(",") for row in (out / "readers_key.csv").read_text().splitlines()]
    form = (out / "readers" / "answers.csv").read_text()
    assert form.splitlines() == ["number,answer", *(f"{number}," for number, _, _ in key[1:])]
    shown = (out / "readers" / "sheet.png").read_bytes()
    for name in [volume for _, _, volume in key[1:]] + ["real", "synthetic"]:
        assert name.encode() not in shown
    answers = tmp_path / "answers.csv"
    answers.write_text("number,answer\n" + "".join(f"{n},{truth}\n" for n, truth, _ in key[1:]))
    call = ["evaluate", "readers", answers, "--key", out / "readers_key.csv"]
    text = medar(*call)
    assert f"{len(key) - 1} of {len(key) - 1}" in text.out
    assert "answers.csv" in text.out
    (score,) = json.loads(medar(*call, "--json").out)["scores"]
    assert (score["accuracy"], score["interval"][1]) == (1.0, 1.0)
    empty = out / "readers" / "answers.csv"
    refused = medar("evaluate", "readers", empty, "--key", out / "readers_key.csv").refusal
    assert "number 1 has the answer ''" in refused
    assert "ANSWERS is missing" in medar("evaluate", "readers", "--key", answers).refusal


def test_copies_are_named(medar: Medar, mr_set: Path, tmp_path: Path, write: Write) -> None:
    for number in range(3):
        write(f"copies/s{number}.nii.gz", noise(number))
    result = medar("evaluate", "generation", tmp_path / "copies", mr_set)
    assert "suspected copy by voxels: volume 1 of c1" in result.out
    assert "shape-v2" not in result.out


def test_invalid_files_give_one_line(
    medar: Medar, files: Path, mr_set: Path, tmp_path: Path, write: Write
) -> None:
    (tmp_path / "empty").mkdir()
    write("half/a.nii.gz", noise(0))
    write("half/b.nii.gz", noise(1))
    write("half/b_label.nii.gz", np.ones((8, 12, 8), np.uint8))
    write("odd/a.nii.gz", noise(0))
    write("odd/a_label.nii.gz", np.full((8, 12, 8), 7, np.uint8))
    write("flat/a.nii.gz", np.ones((8, 12, 8), np.float32))
    for arguments, message in (
        ([tmp_path / "none", mr_set], "none: no such folder"),
        ([tmp_path / "empty", mr_set], "empty: contains no volumes"),
        ([files, tmp_path / "set"], "not a prepared data set"),
        ([tmp_path / "half", mr_set], "a.nii.gz: has no label map"),
        ([tmp_path / "odd", mr_set], "a_label.nii.gz: label values 7"),
        ([tmp_path / "flat", mr_set], "a.nii.gz: every voxel is 1"),
        ([files, mr_set, "--samples", 1], "number of generated volumes must be at least 2, got 1"),
        ([files, mr_set, "--samples", 0], "samples must be at least 1, got 0"),
        ([files, mr_set, "--batch", 0], "--batch must be at least 1, got 0"),
        ([files, mr_set, "--extractor", "medicalnet-v1"], "needs its weights"),
        ([files, mr_set, "--out", mr_set / "plan.yaml"], "is a file"),
    ):
        assert message in medar("evaluate", "generation", *arguments).refusal


def test_patches_must_have_the_plan_size(
    medar: Medar, files: Path, mr_set: Path, write: Write, tmp_path: Path
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


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a tiny generator conditioned on label maps."""
    folder, tokenizer = tmp_path_factory.mktemp("run"), tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(folder / "model", tokenizer)
    return folder


def test_a_generator_is_evaluated_by_its_samples(
    medar: Medar, model: Path, ct_set: Path, tmp_path: Path
) -> None:
    call = ["evaluate", "generation", model, ct_set, "--samples", 3, "--seed", 5]
    result = medar(
        *call, "--guidance-scale", 1.5, "--top-k", 4, "--json", "--out", tmp_path / "out"
    )
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert (found["volumes"], found["held_out"], found["reference"]) == (3, 2, 4)
    assert "shape-v2" in found["distances"]  # label maps come from the same tokens
    assert min(found["seconds_per_volume"], found["peak_memory"]) > 0
    generator = found["protocol"]["generator"]
    assert (generator["seeds"], generator["sampling"]["guidance_scale"]) == ([5, 7], 1.5)
    assert generator["conditions"].startswith("attributes and label maps of held-out cases")
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == found
    assert (tmp_path / "out" / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")


def test_editing_is_reported_as_text_and_json(medar: Medar, model: Path, ct_set: Path) -> None:
    call = ["evaluate", "editing", model / "model", ct_set, "--samples", 2, "--box", 0.4]
    result = medar(*call, "--limit", 1)
    assert result.code == 0, result.err
    for word in (
        "1 case of the split test",
        "smooth filling",
        "trilinear",
        "editing-v1",
        "note: 1",
    ):
        assert word in result.out, result.out
    found = json.loads(medar(*call, "--json", "--split", "val", "--known-scales", 2).out)
    assert (found["cases"], found["split"], found["known_scales"]) == (1, "val", 2)
    assert found["inpainting"]["similarity"].keys() > {"mean filling", "sampled", "reconstructed"}


def test_conditions_are_reported_and_the_judge_is_cached(
    medar: Medar, model: Path, ct_set: Path, tmp_path: Path
) -> None:
    call = ["evaluate", "conditions", model, ct_set, "--judge", tmp_path / "judge"]
    result = medar(*call, "--max-minutes", 0.01, "--device", "cpu")
    assert result.code == 0, result.err
    for word in (
        "Dice with 2 label maps",
        "samples",
        "real volumes",
        "another case's",
        "conditions-v2",
    ):
        assert word in result.out, result.out
    again = medar(*call, "--max-minutes", 0.01, "--device", "cpu", "--json")
    assert "already finished" in again.err
    found = json.loads(again.out)
    assert found["cases"] == 2
    assert len(found["samples"]) == 2


def test_invalid_generators_give_one_line(
    medar: Medar, model: Path, ct_set: Path, tmp_path: Path, write: Write
) -> None:
    write("files/a.nii.gz")
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer, maps=False).save_pretrained(tmp_path / "plain", tokenizer)
    judge = ["--judge", tmp_path / "judge"]
    for arguments, message in (
        (
            ["generation", tmp_path / "files", ct_set, "--guidance-scale", 1],
            "files: holds files, not a generator",
        ),
        (["generation", model, ct_set, "--temperature", "1,1"], "temperature has 2 values"),
        (["generation", model / "model" / "tokenizer", ct_set], "is not a generator"),
        (["generation", model, ct_set, "--samples", 0], "samples must be at least 1, got 0"),
        (["editing", model, ct_set, "--factor", 5], "factor must"),
        (["editing", tmp_path, ct_set], "no generator"),
        (["conditions", tmp_path / "plain", ct_set, *judge], "plain: was trained without label"),
        (["conditions", model, ct_set, *judge, "--max-minutes", 0], "minutes"),
    ):
        assert message in medar("evaluate", *arguments).refusal
