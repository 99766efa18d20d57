"""Agreement of samples with the label maps they were conditioned on; the judge."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_volumes import make_generator, make_plan
from torch import Tensor, nn

from medar.data.loading import PreparedDataset
from medar.data.manifest import Manifest
from medar.errors import MedarError
from medar.evaluation.generation import agreement
from medar.evaluation.generation.agreement import evaluate_conditions, judge_settings, train_judge


class Threshold(nn.Module):
    """Segments bright voxels, as in every second case, as "left", and nothing as "right"."""

    def __init__(self) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor(0.2))

    def forward(self, volumes: Tensor) -> Tensor:
        apart = volumes - self.at
        return torch.cat([-apart, apart, torch.full_like(apart, -9.0)], dim=1)


def test_the_judge_is_validated_on_real_volumes(prepared: Path) -> None:
    loaded = make_generator(make_plan())
    report = evaluate_conditions(loaded, prepared, Threshold(), "train", seed=3)
    assert report == evaluate_conditions(loaded, prepared, Threshold(), "train", seed=3)
    assert report.cases == 4
    assert report.real["left"] == pytest.approx(1.0, abs=0.02)
    assert report.real["right"] == 0.0
    assert (report.samples["left"] or 0) < 0.9
    assert report.to_dict()["protocol"]["name"] == "conditions-v2"


def test_samples_that_follow_their_maps_score_high(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = iter(PreparedDataset(prepared, split="train")[k]["image"][None] for k in range(4))
    monkeypatch.setattr(agreement, "sample_volumes", lambda *_: (next(real), None))
    report = evaluate_conditions(make_generator(make_plan()), prepared, Threshold(), "train")
    assert report.samples == report.real
    assert (report.unrelated["left"] or 0) < 0.6


def test_agreement_needs_two_cases(prepared: Path) -> None:
    loaded = make_generator(make_plan())
    report = evaluate_conditions(loaded, prepared, Threshold(), "train", limit=1)
    assert report.unrelated == {"left": None, "right": None}


def test_generators_without_maps_are_refused(prepared: Path) -> None:
    without = make_generator(make_plan(), maps=False)
    with pytest.raises(MedarError, match="was trained without label maps"):
        evaluate_conditions(without, prepared, Threshold())
    with pytest.raises(MedarError, match="limit must be at least 1, got 0"):
        evaluate_conditions(make_generator(make_plan()), prepared, Threshold(), limit=0)


def test_a_judge_is_trained_once(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = judge_settings(steps=2, device="cpu", precision="fp32")
    first = train_judge(prepared, tmp_path / "judge", settings)
    again = train_judge(prepared, tmp_path / "judge", settings)
    assert "already finished at step 2" in capsys.readouterr().err
    volumes = PreparedDataset(prepared, split="val")[0]["image"][None]
    assert first(volumes).shape == (1, 3, 8, 8, 8)
    assert torch.equal(first(volumes), again(volumes))
    with pytest.raises(MedarError, match="was made with minutes"):
        train_judge(prepared, tmp_path / "judge", judge_settings(1.0, steps=2, device="cpu"))
    (tmp_path / "judge" / "model" / "model.safetensors").write_bytes(b"0")
    with pytest.raises(MedarError, match="not the weights of this configuration"):
        train_judge(prepared, tmp_path / "judge", settings)


def test_a_judge_needs_labels(
    data: Manifest, prepare_with: Callable[..., Path], tmp_path: Path
) -> None:
    cases = tuple(replace(case, label=None, annotated=None) for case in data.cases)
    plain = prepare_with(replace(data, cases=cases, labels={}), labels={})
    with pytest.raises(MedarError, match="segmentation needs labels"):
        train_judge(plain, tmp_path / "judge")
