"""The report on a tokenizer: prefixes, units, references, and mismatched data."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_volumes import make_plan, make_tokenizer

from medar.data.loading import PreparedDataset
from medar.data.manifest import Manifest
from medar.data.plan import IntensityRule
from medar.errors import MedarError
from medar.evaluation.reconstruction import evaluate_tokenizer
from medar.evaluation.reconstruction.cases import make_examples
from medar.evaluation.reconstruction.realism import FrechetProtocol
from medar.evaluation.similarity import psnr
from medar.evaluation.written import as_written, file_step
from medar.tokenizer.detail import DetailConfig, DetailDecoder

PrepareWith = Callable[..., Path]


def test_the_report_equals_scores_of_the_decoded_volumes(prepared: Path) -> None:
    tokenizer = make_tokenizer(make_plan()).train()
    report = evaluate_tokenizer(tokenizer, prepared, "test", batch_size=1)
    assert tokenizer.training
    tokenizer.eval()
    dataset = PreparedDataset(prepared, split="test")
    volumes = torch.stack([dataset[index]["image"] for index in range(len(dataset))])
    pyramid = tokenizer.encode(volumes)
    step = file_step(dataset)
    for upto, found in enumerate(report.psnr_per_scale, 1):
        written = as_written(tokenizer.decode(pyramid, upto).volume, step)
        expected = psnr(written, volumes).mean()
        assert found == pytest.approx(float(expected), rel=1e-4)
    assert report.psnr == report.psnr_per_scale[-1]
    apart = (written - volumes).abs().mean()
    assert (report.mae, report.mae_unit) == (pytest.approx(1000 * float(apart), rel=1e-4), "HU")
    energy = tokenizer.quantiser(tokenizer.encoder(volumes)).residual_energy
    assert report.residual_energy_per_scale == pytest.approx(energy.tolist(), rel=1e-4)
    assert report.codebook_usage == len(pyramid.flatten().unique()) / 16
    assert report.bits_per_voxel == pytest.approx(9 * 4 / 512)
    assert report.power_ratio == report.power_ratio_thirds[2]
    assert (report.grid_artifact, report.grid_artifacts) == (None, {})  # sides of 8 voxels
    assert report.compression == pytest.approx(16 / (9 * 4 / 512))


def test_batches_change_nothing_and_prefixes_can_be_left_out(prepared: Path) -> None:
    tokenizer = make_tokenizer(make_plan())
    expected = evaluate_tokenizer(tokenizer, prepared, "train", batch_size=3).to_dict()
    other = evaluate_tokenizer(tokenizer, prepared, "train", by_scale=False).to_dict()
    for name, value in other.items():
        if isinstance(value, float):
            assert value == pytest.approx(expected[name], rel=1e-3), name
    assert other["psnr_per_scale"] == []
    assert len(other["usage_per_scale"]) == 2
    json.dumps(expected, allow_nan=False)


def test_each_split_is_compared_with_other_real_volumes(prepared: Path) -> None:
    tokenizer = make_tokenizer(make_plan())
    test = evaluate_tokenizer(tokenizer, prepared, "test")
    assert test.protocol["frechet"]["reference"] == "train split"
    assert test.protocol["frechet"]["reference_samples"] == 4
    assert test.frechet is not None
    assert test.frechet_floor is not None
    assert test.frechet > test.frechet_floor > 0
    assert test.frechet_samples == 2
    assert len(test.frechet_contributions) == 3
    with pytest.raises(MedarError, match="frechet_samples must be at least 2, got 1"):
        evaluate_tokenizer(tokenizer, prepared, "test", frechet_samples=1)
    train = evaluate_tokenizer(tokenizer, prepared, "train")
    assert train.protocol["frechet"]["samples"] == 2
    assert any("every second case of the train split" in note for note in train.notes)
    val = evaluate_tokenizer(tokenizer, prepared, "val")  # a single case
    assert (val.frechet, val.frechet_floor) == (None, None)
    assert any("no Frechet distance" in note for note in val.notes)
    assert any("1 case, fewer than 20" in note for note in val.notes)
    assert evaluate_tokenizer(tokenizer, prepared, "train", limit=2).cases == 2


def test_held_out_cases_are_all_but_those_of_the_train_split(
    prepared: Path, data: Manifest, prepare_with: PrepareWith, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer(make_plan())
    report = evaluate_tokenizer(tokenizer, prepared, "held-out")
    assert (report.cases, report.split) == (3, "held-out")
    assert report.protocol["frechet"]["reference"] == "train split"
    fewer = evaluate_tokenizer(tokenizer, prepared, "held-out", frechet_samples=2)
    assert (fewer.cases, fewer.frechet_samples, report.frechet_samples) == (3, 2, 3)
    assert len(make_examples(tokenizer, prepared, "held-out", cases=9)) == 3
    every = tuple(replace(case, split="train") for case in data)
    with pytest.raises(MedarError, match="has no held-out cases"):
        evaluate_tokenizer(tokenizer, prepare_with(data.with_cases(every)), "held-out")


def test_detail_counts_for_spectra_and_not_for_fidelity(prepared: Path) -> None:
    tokenizer = make_tokenizer(make_plan())
    sizes = DetailConfig(strides=((2, 2, 2),), widths=(4, 6), steps=2)
    torch.manual_seed(0)
    detailed = tokenizer.with_detail(DetailDecoder(sizes).eval())
    plain, drawn = (evaluate_tokenizer(one, prepared, "train") for one in (tokenizer, detailed))
    assert drawn.psnr == pytest.approx(plain.psnr, rel=1e-5)
    assert drawn.power_ratio_per_scale == pytest.approx(plain.power_ratio_per_scale, rel=1e-4)
    assert plain.power_ratio == pytest.approx(plain.power_ratio_per_scale[-1], rel=1e-4)
    assert drawn.power_ratio != pytest.approx(plain.power_ratio, rel=1e-4)
    assert drawn.frechet != plain.frechet
    without = evaluate_tokenizer(detailed, prepared, "train", detail="none")
    assert without.power_ratio == pytest.approx(plain.power_ratio, rel=1e-4)


def test_a_data_set_without_a_train_split_is_divided(
    data: Manifest, prepare_with: PrepareWith
) -> None:
    cases = tuple(replace(case, split="test") for case in data)
    folder = prepare_with(data.with_cases(cases))
    report = evaluate_tokenizer(make_tokenizer(make_plan()), folder, "test")
    assert report.protocol["frechet"]["reference"] == "every second case of the test split"
    assert report.protocol["frechet"]["samples"] == 4
    assert report.protocol["frechet"]["reference_samples"] == 3


def test_dice_uses_annotated_labels(prepared: Path) -> None:
    tokenizer = make_tokenizer(make_plan(), labels=2)
    report = evaluate_tokenizer(tokenizer, prepared, "test")
    assert report.dice is not None
    assert report.dice.keys() == {"left", "right"}
    # c4 has label 1 and no 2; c5 has 2, and was not annotated for it.
    assert report.dice["left"] is not None
    assert report.dice["right"] is None
    assert evaluate_tokenizer(make_tokenizer(None), prepared).dice is None


@pytest.mark.parametrize(
    ("rule", "modality", "unit", "factor"),
    [
        (IntensityRule(kind="percentiles", low=0.0, high=100.0), "CT", "fraction", 0.5),
        (IntensityRule(kind="window", low=-500.0, high=500.0), "MR", "units of the volume", 500),
    ],
)
def test_the_error_has_the_unit_of_the_window(
    data: Manifest, prepare_with: PrepareWith, rule: Any, modality: Any, unit: str, factor: float
) -> None:
    cases = tuple(replace(case, modality=modality) for case in data)
    folder = prepare_with(data.with_cases(cases), intensity={"other": rule})
    tokenizer = make_tokenizer(None)
    report = evaluate_tokenizer(tokenizer, folder, "test")
    assert report.mae_unit.startswith(unit)
    dataset = PreparedDataset(folder, split="test")
    volumes = torch.stack([dataset[index]["image"] for index in range(2)])
    written = as_written(tokenizer(volumes).volume, file_step(dataset))
    apart = (written - volumes).abs().mean().detach()
    assert report.mae == pytest.approx(factor * float(apart), rel=1e-4)


def test_patches_are_the_same_each_time(prepare_with: PrepareWith) -> None:
    folder = prepare_with(mode="patch", size=(8, 8, 8))
    tokenizer = make_tokenizer(None)
    first, again = (evaluate_tokenizer(tokenizer, folder).to_dict() for _ in range(2))
    assert first == again
    assert any("patches" in note for note in first["notes"])


def test_mismatched_inputs_are_refused(prepared: Path, prepare_with: PrepareWith) -> None:
    tokenizer = make_tokenizer(None)
    with pytest.raises(MedarError, match=r"size \[16, 8, 8\], but the tokenizer was trained for"):
        evaluate_tokenizer(tokenizer, prepare_with(size=(16, 8, 8)))
    with pytest.raises(MedarError, match="labels 2, but the tokenizer was trained for 3"):
        evaluate_tokenizer(make_tokenizer(None, labels=3), prepared)
    with pytest.raises(MedarError, match="limit must be at least 1, got 0"):
        evaluate_tokenizer(tokenizer, prepared, limit=0)
    with pytest.raises(MedarError, match="batch_size must be at least 1, got 0"):
        evaluate_tokenizer(tokenizer, prepared, batch_size=0)


def test_examples_are_in_the_units_of_their_volumes(prepared: Path) -> None:
    tokenizer = make_tokenizer(None)
    examples = make_examples(tokenizer, prepared, "train", cases=3)
    assert [example.name for example in examples] == ["c0", "c2", "c3"]
    dataset = PreparedDataset(prepared, split="train")
    volume = dataset[0]["image"]
    torch.testing.assert_close(torch.tensor(examples[0].original.array), 1000 * volume)
    decoded = tokenizer(volume[None]).volume[0].detach() * 1000
    last = torch.tensor(examples[0].prefixes[-1].array)
    torch.testing.assert_close(last, decoded, rtol=1e-3, atol=0.1)
    assert len(examples[0].prefixes) == 2
    assert math.isfinite(float(examples[0].prefixes[0].array.sum()))


def test_the_protocol_is_printable() -> None:
    protocol = FrechetProtocol(
        extractor="radiomics-v2", features=54, samples=7, reference="train split",
        reference_samples=9,
    )  # fmt: skip
    text = str(protocol)
    for part in ("radiomics-v2", "54", "7 volumes", "9 real", "train split", "floor", "deviation"):
        assert part in text
