"""Inpainting and super-resolution on held-out cases."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_volumes import make_generator, make_plan, make_tokenizer, smooth

from medar.data.loading import PreparedDataset
from medar.errors import MedarError
from medar.evaluation.generation.editing import AVERAGED, ENCODED, SAMPLED, evaluate_editing
from medar.evaluation.generation.edits import box_removed, lowered, smooth_filling
from medar.evaluation.generation.sampling import reconstructed
from medar.evaluation.similarity import psnr
from medar.synthesis import Synthesizer
from medar.volume import Volume, resample


@pytest.fixture(scope="module")
def loaded() -> Synthesizer:
    return make_generator(make_plan(), maps=False)


def test_inpainting_hides_the_whole_box() -> None:
    tokenizer, (real,) = make_tokenizer(make_plan()), smooth(1, 8, 8, 8)
    edit = box_removed(tokenizer, real, 0.5, [0, 3])
    box = (slice(None), *edit.part)
    assert real[box].shape == (1, 4, 4, 4)
    other = real.clone()
    other[box] = torch.rand(1, 4, 4, 4)
    again = box_removed(tokenizer, other, 0.5, [0, 3])
    assert torch.equal(edit.known.latent, again.known.latent)
    assert edit.part == again.part
    beyond = torch.ones_like(real, dtype=torch.bool)
    beyond[box] = False
    for name, filled in edit.baselines.items():
        assert torch.equal(filled, again.baselines[name])
        assert torch.equal(filled[beyond], real[beyond])
    assert edit.baselines["mean filling"][box].unique().numel() == 1


def test_box_positions_are_determined_by_the_seed() -> None:
    tokenizer, (real,) = make_tokenizer(make_plan()), smooth(1, 8, 8, 8)
    starts = {
        tuple(s.start for s in box_removed(tokenizer, real, 0.25, [k]).part) for k in range(9)
    }
    assert len(starts) > 5


def test_upscaling_uses_only_block_means() -> None:
    tokenizer, (real,) = make_tokenizer(make_plan()), smooth(1, 8, 8, 8)
    edit = lowered(tokenizer, real, 2, 1)
    ripple = torch.tensor([0.1, -0.1]).repeat(4)[:, None, None].expand(8, 8, 8)
    again = lowered(tokenizer, real + ripple, 2, 1)
    torch.testing.assert_close(edit.known.latent, again.known.latent)
    assert edit.known.mask.tolist() == [[True] + [False] * 8]
    low = torch.nn.functional.avg_pool3d(real, 2).numpy()
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = 0.5
    grid = Volume(array=real.numpy(), affine=np.eye(4)).grid
    same = resample(Volume(array=low, affine=affine), grid, fill=-1.0).array
    np.testing.assert_allclose(edit.baselines["trilinear"].numpy(), same, atol=1e-5)


def test_the_smooth_filling_continues_a_slope() -> None:
    slope = np.broadcast_to(np.linspace(-1, 1, 12, dtype=np.float32)[:, None, None], (12, 12, 12))
    hole = np.zeros((12, 12, 12), bool)
    hole[3:9, 4:8, 2:9] = True
    emptied = np.where(hole, 0, slope)[None].astype(np.float32)
    np.testing.assert_allclose(smooth_filling(emptied, hole)[0], slope, atol=1e-3)


def test_results_are_compared_with_baselines(loaded: Synthesizer, prepared: Path) -> None:
    report = evaluate_editing(loaded, prepared, samples=1, box=0.4)
    assert report == evaluate_editing(loaded, prepared, samples=1, box=0.4)
    assert (report.cases, report.known_scales, report.upscaling.known_fraction) == (2, 1, 1 / 9)
    inside, whole = report.inpainting.similarity, report.upscaling.similarity
    assert list(inside) == ["mean filling", "smooth filling", SAMPLED, AVERAGED, ENCODED]
    assert list(whole) == ["trilinear", SAMPLED, AVERAGED, ENCODED]
    assert inside[SAMPLED] == inside[AVERAGED]  # of one sample
    dataset = PreparedDataset(prepared, split="test")
    pairs = [
        (dataset[k]["image"], reconstructed(loaded.tokenizer, dataset[k]["image"])) for k in (0, 1)
    ]
    expected = np.mean([float(psnr(made[None], real[None])) for real, made in pairs])
    assert whole[ENCODED].psnr == pytest.approx(expected, abs=1e-4)
    assert report.notes == ["2 cases, fewer than 20: all values are rough estimates"]


def test_the_number_of_samples_and_the_seed_can_be_changed(
    loaded: Synthesizer, prepared: Path
) -> None:
    first = evaluate_editing(loaded, prepared, samples=3, limit=1, scales=1)
    other = evaluate_editing(loaded, prepared, samples=3, limit=1, seed=9)
    assert first.upscaling.similarity[SAMPLED] != first.upscaling.similarity[AVERAGED]
    assert first.upscaling.similarity["trilinear"] == other.upscaling.similarity["trilinear"]
    assert first.upscaling.similarity[SAMPLED] != other.upscaling.similarity[SAMPLED]
    assert first.cases == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"box": 1.0}, "box must be a fraction between 0 and 1, got 1"),
        ({"factor": 3}, "factor must .* divide each side of the volumes, 8 x 8 x 8, got 3"),
        ({"factor": 1}, "factor must be at least 2 .* got 1"),
        ({"scales": 2}, "known scales must be from 1 to 1, got 2"),
    ],
)
def test_impossible_measurements_are_refused(
    loaded: Synthesizer, prepared: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(MedarError, match=message):
        evaluate_editing(loaded, prepared, **changes)
