"""Sampling volumes from a generator for an evaluation."""

from pathlib import Path

import pytest
import torch
from small_volumes import make_generator, make_plan

from medar.data.loading import PreparedDataset
from medar.errors import MedarError
from medar.evaluation.generation import evaluate_generation
from medar.evaluation.generation.sampling import SampledVolumes, conditions, sample_volumes
from medar.generator.conditions import Condition
from medar.synthesis.synthesizer import Synthesizer


def test_sampling_equals_the_synthesizer() -> None:
    loaded = make_generator(make_plan(), labels=2)
    condition = torch.tensor([[0.0], [0.0]])
    volumes, labels = sample_volumes(
        loaded, Condition(attributes=condition), [3, 4], loaded.sampling
    )
    expected = Synthesizer(loaded.model, loaded.tokenizer)(n=2, seed=3, modality="CT")
    assert labels is not None
    for volume, label, other in zip(volumes, labels, expected, strict=True):
        assert other.label is not None
        assert torch.equal(label, torch.from_numpy(other.label.array.copy()))
        restored = torch.from_numpy(other.image.array.copy()) / 1000  # the window is -1000 to 1000
        torch.testing.assert_close(volume, restored, atol=1e-5, rtol=0)


def test_each_sample_has_its_seed_and_its_case(prepared: Path) -> None:
    loaded = make_generator(make_plan())
    ones = torch.cat(list(SampledVolumes(loaded, prepared, samples=3, seed=5, batch_size=1)))
    whole = SampledVolumes(loaded, prepared, samples=3, seed=5, batch_size=3)
    (together,) = list(whole)
    torch.testing.assert_close(ones, together)
    assert list(whole.first_volumes()) == ["seed 5", "seed 6", "seed 7"]
    dataset = PreparedDataset(prepared, split="test")  # two cases: the third begins again
    given = conditions(loaded, dataset, [0])
    again, _ = sample_volumes(loaded, given, [7], loaded.sampling)
    torch.testing.assert_close(again, together[2:])
    other, _ = sample_volumes(loaded, conditions(loaded, dataset, [1]), [7], loaded.sampling)
    assert not torch.allclose(other, again)


def test_conditions_come_from_the_cases(prepared: Path) -> None:
    dataset = PreparedDataset(prepared, split="train")
    loaded = make_generator(make_plan())
    given = conditions(loaded, dataset, [0, 1])
    assert given.map is not None
    assert given.map.sum(dim=1).eq(1).all()  # every voxel is known
    for k in range(2):
        label = dataset[k]["label"][0]
        assert torch.equal(given.map[k].argmax(dim=0), label.long())
    assert given.attributes.tolist() == [[0.0], [0.0]]  # CT
    assert conditions(loaded, dataset, [0], maps=False).map is None
    assert conditions(make_generator(make_plan(), maps=False), dataset, [0]).map is None


def test_the_default_number_of_samples(prepared: Path) -> None:
    loaded = make_generator(make_plan(), maps=False)
    assert len(SampledVolumes(loaded, prepared, split="held-out").seeds) == 20
    assert len(SampledVolumes(loaded, prepared, samples=2).seeds) == 2


def test_the_report_records_cost_and_origin(prepared: Path) -> None:
    loaded = make_generator(make_plan(), maps=False)
    sampled = SampledVolumes(loaded, prepared, samples=3, seed=2, batch_size=2)
    report = sampled.complete(
        evaluate_generation(sampled, prepared, extractors=["texture-v2"], seed=2)
    )
    assert report.volumes == 3
    assert (report.seconds_per_volume or 0) > 0
    assert (report.peak_memory or 0) > 1 << 20
    recorded = report.protocol["generator"]
    assert (recorded["seeds"], recorded["batch"], recorded["class"]) == ([2, 4], 2, "Generator")
    assert recorded["sampling"]["temperature"] == "auto"


def test_mismatched_inputs_are_refused(prepared: Path) -> None:
    loaded = make_generator(make_plan())
    for name, value in (("samples", 0), ("seed", -1), ("batch_size", 0)):
        with pytest.raises(MedarError, match=rf"{name} must be at least \d, got {value}"):
            SampledVolumes(loaded, prepared, **{name: value})  # type: ignore[arg-type]
    other = make_generator(make_plan(labels={1: "left", 3: "right"}))
    with pytest.raises(
        MedarError, match=r"label values \[1, 2\], but the generator was trained with \[1, 3\]"
    ):
        SampledVolumes(other, prepared)


def test_fewer_samples_than_cases_are_spread_evenly(prepared: Path) -> None:
    loaded = make_generator(make_plan())
    (made,) = SampledVolumes(loaded, prepared, split="held-out", samples=2)
    every = PreparedDataset(prepared)
    for index, case in enumerate((4, 6)):  # the first and the last of three
        alone, _ = sample_volumes(
            loaded, conditions(loaded, every, [case]), [index], loaded.sampling
        )
        torch.testing.assert_close(made[index], alone[0])
