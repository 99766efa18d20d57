"""Evaluation of generated volumes: real ones pass, others do not; the report as JSON."""

import json
from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from small_volumes import make_plan, smooth

from medar.data.loading import PreparedDataset
from medar.data.manifest import Manifest
from medar.data.prepare import prepare
from medar.data.sources import read_manifest
from medar.errors import MedarError
from medar.evaluation.generation import GenerationReport, evaluate_generation
from medar.evaluation.generation.set_statistics import KEPT, Meter, SetStatistics

Prepare = Callable[..., Path]


def real(folder: Path, split: str) -> torch.Tensor:
    dataset = PreparedDataset(folder, split=split)
    return torch.stack([dataset[index]["image"] for index in range(len(dataset))])


def values(report: GenerationReport) -> dict:
    """The report as strict JSON, without NaN and Inf."""
    return json.loads(json.dumps(report.to_dict(), allow_nan=False))


def test_every_key_is_there_and_finite(prepared: Path) -> None:
    made = smooth(6, 8, 8, 8, seed=9)
    found = values(
        evaluate_generation(made.split(4), prepared, seconds_per_volume=0.5, peak_memory=2**20)
    )
    assert (found["volumes"], found["held_out"], found["reference"]) == (6, 2, 4)
    assert found["distances"].keys() == {"radiomics-v2", "texture-v2"}
    assert found["distances"]["texture-v2"]["frechet_samples"] == 2
    assert len(found["distances"]["radiomics-v2"]["contributions"]) == 3
    assert len(found["power_ratio_thirds"]) == len(found["power_ratio_thirds_floor"]) == 3
    assert (found["grid_artifact"], found["grid_artifacts"]) == (None, {})  # sides of 8 voxels
    assert found["memorisation"].keys() == {"features", "voxels"}
    assert (found["seconds_per_volume"], found["peak_memory"]) == (0.5, 2**20)
    assert found["intensity_unit"] == "HU"
    assert found["protocol"]["name"] == "generation-v2"
    assert found["protocol"]["held_out"] == "test split"
    assert found["protocol"]["ms_ssim"]["window"] == 5
    assert [note.split()[0] for note in found["notes"]] == ["6", "2", "4"]


def test_intensities_are_compared_in_hounsfield_units(prepared: Path) -> None:
    """A shift of 0.1 in [-1, 1] is one of 100 HU, as the window is 2000 HU wide."""
    train = 0.5 * real(prepared, "train")
    base = evaluate_generation([train], prepared)
    shifted = evaluate_generation([train + 0.1], prepared)
    assert evaluate_generation([real(prepared, "train")], prepared).intensity_distance == 0
    assert shifted.intensity_distance > base.intensity_distance
    offset = real(prepared, "train").clamp(max=0.8)
    pair = [
        evaluate_generation([volume], prepared).intensity_distance
        for volume in (offset, offset - 1)
    ]
    assert pair[0] < 20 < 300 < pair[1]


def test_copies_of_the_training_set_are_detected(prepared: Path) -> None:
    report = evaluate_generation([real(prepared, "train")], prepared)
    for audit in report.memorisation.values():
        assert [suspect.case for suspect in sorted(audit.suspects, key=attrgetter("index"))] == [
            "c0", "c1", "c2", "c3",
        ]  # fmt: skip
        assert audit.ratio < 1e-3


def test_label_maps_add_shapes(prepared: Path) -> None:
    made = smooth(3, 8, 8, 8, seed=9)
    labels = (made > 0.2).byte()
    report = evaluate_generation([(made, labels), (made[:1], 2 * labels[:1])], prepared)
    shape = report.distances["shape-v2"]
    assert shape.features == 18
    assert shape.frechet > 0
    assert shape.frechet_floor is None  # of two held-out cases one is annotated for label 1 alone
    with pytest.raises(MedarError, match="only some generated volumes have label maps"):
        evaluate_generation([(made, labels), made], prepared)


def test_held_out_is_every_case_but_train(prepared: Path) -> None:
    report = evaluate_generation([smooth(3, 8, 8, 8)], prepared, split="held-out")
    assert (report.held_out, report.protocol["held_out"]) == (3, "all but the train split")


def test_no_more_volumes_than_requested_are_used(prepared: Path) -> None:
    taken = []

    def endless():
        while True:
            taken.append(smooth(2, 8, 8, 8, seed=len(taken)))
            yield taken[-1]

    report = evaluate_generation(endless(), prepared, samples=5, limit=3)
    assert (report.volumes, len(taken), report.reference) == (5, 3, 3)
    assert any("3 of 4 training volumes" in note for note in report.notes)


def test_results_depend_only_on_the_seed(prepared: Path) -> None:
    made = smooth(5, 8, 8, 8, seed=9)
    first = values(evaluate_generation(made.split(2), prepared, seed=1))
    assert first == values(evaluate_generation([made], prepared, seed=1, batch_size=1))
    assert first != values(evaluate_generation([made], prepared, seed=2))


def test_patches_are_evaluated_as_patches(prepare_with: Prepare) -> None:
    folder = prepare_with(mode="patch", size=(8, 8, 8))
    report = evaluate_generation([smooth(3, 8, 8, 8)], folder)
    assert any(note.startswith("patches") for note in report.notes)


def test_invalid_inputs_are_refused(prepared: Path, data: Manifest, prepare_with: Prepare) -> None:
    made = smooth(3, 8, 8, 8)
    broken = made.clone()
    broken[1, 0, 0, 0, 0] = float("nan")
    all_train = replace(data, cases=tuple(replace(case, split="train") for case in data.cases))
    alone = prepare_with(all_train)
    for batches, folder, options, message in (
        ([made[:1]], prepared, {}, "number of generated volumes must be at least 2, got 1"),
        ([], prepared, {}, "number of generated volumes must be at least 2, got 0"),
        ([smooth(2, 8, 8, 9)], prepared, {}, r"shape \(B, 1, 8, 8, 8\), got \(2, 1, 8, 8, 9\)"),
        ([broken], prepared, {}, "volumes 0 to 2 contain NaN or Inf"),
        ([made], alone, {}, "no case in the split 'test'"),
        ([made], alone, {"split": "held-out"}, "has no held-out cases"),
        ([made], prepared, {"samples": 0}, "samples must be at least 1, got 0"),
        ([made], prepared, {"limit": 1}, "got 8 x 8 x 8 voxels and 1 volume"),
        (
            [made],
            prepare_with(size=(4, 4, 4)),
            {},
            "sides of at least 8 voxels and 2 training volumes",
        ),
        ([made], prepared.parent, {}, "not a prepared data set"),
    ):
        with pytest.raises(MedarError, match=message) as caught:
            evaluate_generation(batches, folder, **options)
        assert "\n" not in str(caught.value)


def test_kept_volumes_are_a_uniform_sample() -> None:
    indices: list[int] = []
    for seed in range(40):
        meter = Meter(extractors=[], plan=make_plan(), step=torch.tensor([2e-3]), device="cpu")
        gathered = SetStatistics(meter, seed)
        volumes = torch.zeros(4 * KEPT, 1, 8, 8, 8)
        volumes += torch.linspace(-1, 1, len(volumes)).view(-1, 1, 1, 1, 1)
        gathered.update(volumes)
        assert len(gathered.kept) == KEPT
        indices += [
            round((float(item.mean()) + 1) / 2 * (len(volumes) - 1)) for item in gathered.kept
        ]
    early = np.mean(np.array(indices) < 2 * KEPT)
    assert early == pytest.approx(0.5, abs=0.06)


def test_real_volumes_pass_and_blurred_ones_do_not(shared_data: Path, tmp_path: Path) -> None:
    manifest = read_manifest(shared_data / "hippocampus_mr")
    splits = ["train"] * 24 + ["val"] * 8 + ["test"] * 8
    pairs = zip(manifest.cases, splits, strict=False)
    cases = tuple(replace(case, split=split) for case, split in pairs)
    rule = {"other": {"kind": "percentiles", "low": 0.5, "high": 99.5}}
    plan = make_plan(size=(40, 48, 40), downsampling=(8, 8, 8), labels=manifest.labels)
    plan = replace(plan, intensity={"other": type(plan.intensity["CT"])(**rule["other"])})
    prepare(replace(manifest, cases=cases), plan, tmp_path / "prepared", workers=1)
    fresh = real(tmp_path / "prepared", "val")
    blurred = torch.from_numpy(gaussian_filter(fresh.numpy(), (0, 0, 0.8, 0.8, 0.8)))
    passed, failed = (
        evaluate_generation([volumes], tmp_path / "prepared").distances["radiomics-v2"]
        for volumes in (fresh, blurred)
    )
    assert passed.frechet < 2 * passed.frechet_floor
    assert failed.frechet_interval[0] > 5 * failed.frechet_floor
    assert failed.kernel > 20 * abs(failed.kernel_floor)
