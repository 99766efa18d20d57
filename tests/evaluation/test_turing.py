"""The Turing test: equal sets are not told apart, blurred ones are; folds, levels and reports."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_volumes import make_plan, smooth
from torch import Tensor

from medar.data.loading import PreparedDataset
from medar.data.manifest import Manifest
from medar.data.plan import IntensityRule
from medar.errors import MedarError
from medar.evaluation.auc import Area, area_under_roc
from medar.evaluation.generation import discriminator, evaluate_generation, turing
from medar.evaluation.generation.discriminator import (
    VolumeSet,
    assign_folds,
    discriminate,
)
from medar.evaluation.generation.files import as_volume, generated_files, read_generated
from medar.evaluation.generation.turing import KeptVolumes
from medar.volume import Volume, write_nifti

Prepare = Callable[..., Path]
CPU = torch.device("cpu")
STEP = torch.tensor([0.002])


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny volumes need few steps."""
    monkeypatch.setattr(discriminator, "STEPS", 20)


def told_apart(first: Tensor, second: Tensor, seed: int = 0) -> Area:
    sets = [VolumeSet(one, range(len(one))) for one in (first, second)]
    low, high = discriminate(sets[0], sets[1], seed, CPU)
    return area_under_roc(low.values, high.values, (low.folds, high.folds))


def blurred(volumes: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool3d(volumes, 3, stride=1, padding=1)


def test_sets_of_one_distribution_are_not_told_apart() -> None:
    areas = [
        told_apart(smooth(20, 8, 8, 8, seed=seed), smooth(20, 8, 8, 8, seed=seed + 100), seed)
        for seed in range(4)
    ]
    assert sum(area.interval[0] <= 0.5 <= area.interval[1] for area in areas) >= 3
    assert np.mean([area.value for area in areas]) == pytest.approx(0.5, abs=0.15)


def test_blurred_volumes_are_told_apart() -> None:
    real, others = smooth(20, 8, 8, 8, seed=1), smooth(20, 8, 8, 8, seed=2)
    assert told_apart(real, blurred(others)).interval[0] > 0.75


def test_copies_of_a_subject_do_not_give_its_set_away() -> None:
    """Ten subjects scanned four times: learning single subjects by heart does not help."""
    sets = [smooth(10, 8, 8, 8, seed=seed).repeat(4, 1, 1, 1, 1) for seed in (3, 4)]
    first, second = (VolumeSet(one, [*range(10)] * 4) for one in sets)
    scores = discriminate(first, second, 0, CPU)
    area = area_under_roc(scores[0].values, scores[1].values, (scores[0].folds, scores[1].folds))
    assert area.value < 0.85
    for one in scores:
        assert all(len(set(one.folds[k::10])) == 1 for k in range(10))


def test_the_same_seed_gives_the_same_scores_and_leaves_torch_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(discriminator, "STEPS", 3)
    sets = [VolumeSet(smooth(4, 8, 8, 8, seed=k), range(4)) for k in range(2)]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = discriminate(sets[0], sets[1], 1, CPU)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    again, other = (discriminate(sets[0], sets[1], seed, CPU) for seed in (1, 2))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.values, two.values)
        np.testing.assert_array_equal(one.folds, two.folds)
    assert not np.array_equal(first[0].values, other[0].values)


def test_folds_are_of_equal_size_and_keep_groups_together() -> None:
    random = np.random.default_rng(0)
    assert sorted(np.bincount(assign_folds(range(23), 5, random))) == [4, 4, 5, 5, 5]
    groups = [k // 2 for k in range(20)]
    folds = assign_folds(groups, 5, random)
    assert (folds[::2] == folds[1::2]).all()
    assert list(np.bincount(folds)) == [4] * 5


def test_kept_volumes_are_a_random_choice_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turing, "MAX_VOLUMES", 5)
    batches = [(torch.full((2, 1, 2, 2, 2), -1 + k / 20), torch.zeros(2)) for k in range(20)]
    chosen = []
    for seed in range(60):
        kept = KeptVolumes(STEP, seed, limit=30)
        assert [id(one) for one in kept.over(batches)] == [id(one) for one in batches]
        indices, volumes = kept.draw(5)
        expected = torch.tensor(indices) // 2 / 20 - 1
        assert (volumes[:, 0, 0, 0, 0] - expected).abs().max() < 1e-3
        chosen += indices
    assert max(chosen) < 30
    assert np.mean(chosen) == pytest.approx(14.5, abs=1.5)


def test_what_no_file_holds_does_not_count() -> None:
    kept = KeptVolumes(STEP)
    volume = smooth(1, 8, 8, 8).clamp(-0.9, 0.9)
    list(kept.over([volume, volume + 1e-9, 3 * volume, (3 * volume).clamp(-1, 1)]))
    _, found = kept.draw(4)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[2], found[3])
    assert found.unique().diff().min() > 0.0015  # half precision keeps the steps apart
    assert (found[0] - volume[0]).abs().max() < 0.0015


def test_it_is_part_of_the_report_on_request(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discriminator, "STEPS", 3)
    made = smooth(6, 8, 8, 8, seed=9)
    assert evaluate_generation([made], prepared).turing is None
    report = evaluate_generation(made.split(4), prepared, turing=True)
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))["turing"]
    assert (found["volumes"], found["held_out"], found["floor_volumes"]) == (6, 2, 3)
    for area, ends in (
        (found["auc"], found["interval"]),
        (found["floor"], found["floor_interval"]),
    ):
        assert 0 <= ends[0] <= area <= ends[1] <= 1
    rows = [(row["kind"], row["volume"]) for row in found["scores"]]
    assert sorted(rows[:6]) == [("real", f"c{k}") for k in range(6)]
    assert rows[6:] == [("synthetic", str(k)) for k in range(6)]
    assert any("too few to say anything; an AUC from 0.1" in note for note in found["notes"])
    assert any("4 of 6 real volumes are of the train split" in note for note in found["notes"])
    assert found["protocol"]["name"] == "turing-v1"


def test_a_floor_that_differs_is_reported() -> None:
    area = Area(value=0.8, interval=(0.7, 0.9))
    (note,) = turing._notes(40, 40, 40, area, (0.4, 0.6))
    assert "two halves of 40 real volumes each seem to differ (AUC 0.80)" in note
    assert turing._notes(40, 40, 40, Area(value=0.6, interval=(0.45, 0.7)), (0.4, 0.6)) == []
    assert "no floor" in turing._notes(40, 40, 1, None, (0.4, 0.6))[0]


def test_real_volumes_are_prepared_as_those_of_files(
    data: Manifest, prepare_with: Prepare, tmp_path: Path
) -> None:
    """Written and read again, real volumes equal what the test compares files with."""
    rule = IntensityRule(kind="percentiles", low=2.0, high=98.0)
    mr = replace(data, cases=tuple(replace(case, modality="MR") for case in data.cases))
    folder = prepare_with(mr, intensity={"MR": rule})
    dataset = PreparedDataset(folder)
    for index in range(len(dataset)):
        volume = as_volume(dataset[index]["image"].numpy(), dataset.plan)
        write_nifti(tmp_path / "made" / f"{index}.nii.gz", volume)
    (batch,) = read_generated(generated_files(tmp_path / "made"), dataset.plan, batch_size=9)
    assert isinstance(batch, Tensor)
    once, twice = (
        torch.stack([turing._real(dataset, index, refit) for index in range(len(dataset))])
        for refit in (False, True)
    )
    torch.testing.assert_close(twice, batch, atol=1e-5, rtol=0)
    assert (once - batch).abs().max() > 0.02


def test_sizes_that_are_not_the_plans_are_named(
    data: Manifest, prepare_with: Prepare, tmp_path: Path
) -> None:
    plan = PreparedDataset(prepare_with()).plan

    def made(shape: tuple[int, ...]) -> None:
        array = np.random.default_rng(0).integers(0, 9, shape).astype(np.int16)
        affine = np.diag([*plan.spacing, 1.0])
        write_nifti(tmp_path / "made" / "b.nii.gz", Volume.from_array(array, affine))

    x, y, z = plan.size
    made((x, y, z))
    read_generated(generated_files(tmp_path / "made"), plan)
    made((x + 3, y, z))
    with pytest.warns(
        UserWarning, match=rf"1 of 1 volume cropped .* size {x} x .*b.nii.gz of {x + 3} x"
    ):
        (batch,) = read_generated(generated_files(tmp_path / "made"), plan)
    assert isinstance(batch, Tensor)
    assert batch.shape[2:] == plan.size
    for shape in ((2 * x + 1, y, z), (x, y, z // 2 - 1)):
        made(shape)
        with pytest.raises(MedarError, match=r"b.nii.gz: .* voxels at the plan's spacing, but"):
            read_generated(generated_files(tmp_path / "made"), plan)


def test_real_volumes_of_one_subject_are_refused(data: Manifest, prepare_with: Prepare) -> None:
    cases = tuple(
        replace(case, subject="only" if case.split == "train" else case.id) for case in data.cases
    )
    folder = prepare_with(replace(data, cases=cases))
    dataset = PreparedDataset(folder, split="train")
    kept = KeptVolumes(STEP)
    list(kept.over([smooth(3, 8, 8, 8)]))
    subset = torch.utils.data.Subset(dataset, [0, 1])
    with pytest.raises(MedarError, match="at least 2 subjects"):
        turing.turing_test(kept, subset, dataset)


@pytest.mark.slow
def test_blurred_hippocampi_are_told_from_real_ones(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medar.data.preparation import prepare_image
    from medar.data.sources import read_manifest
    from medar.volume import read_volume

    monkeypatch.setattr(discriminator, "STEPS", 40)
    rule = IntensityRule(kind="percentiles", low=0.5, high=99.5)
    plan = make_plan(size=(40, 56, 40), intensity={"other": rule})
    images = [case.images[0] for case in read_manifest(shared_data / "hippocampus_mr").cases[:40]]
    arrays = [prepare_image(read_volume(path), plan)[0].copy() for path in images]
    volumes = torch.stack([torch.from_numpy(array) for array in arrays])
    halves = volumes[::2], volumes[1::2]
    assert told_apart(halves[0], blurred(halves[1])).interval[0] > 0.75
    low, high = told_apart(*halves).interval
    assert low < 0.5 < high
