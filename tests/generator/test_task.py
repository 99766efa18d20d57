"""The training task of a generator: its loss, reference values and description."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medar.generator.conditions import Condition
from medar.generator.data import PRIOR, Marginals
from medar.generator.objective import scale_weights, token_losses
from medar.generator.training import make_task
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.tokens import TokenDataset

from ..synthesis.tiny import tiny_tokenizer
from .toy_tokens import CERTAIN, settings, write_tokens


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen cases of two classes; a tenth of their tokens are random."""
    return write_tokens(tmp_path_factory.mktemp("tokens"), tiny_tokenizer(), noise=0.1)


def test_known_tokens_are_neither_corrupted_nor_trained_on(
    tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = {
        "corrupted_token_fraction": 0.9,
        "corrupted_item_fraction": 1,
        "known_box_fraction": 0.7,
        "known_scale_fraction": 0.3,
    }
    task = make_task(settings(objective=objective), tokens)
    batch = next(task.batches(0, 0))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    plain = task.model.forward

    def noted(rows: torch.Tensor, condition: Condition, known: torch.Tensor) -> torch.Tensor:
        seen.append((rows, known))
        return plain(rows, condition, known)

    monkeypatch.setattr(task.model, "forward", noted)
    torch.manual_seed(0)
    task.loss(batch, 0)
    task.loss(batch, 0)
    (rows, known), (others, known_next) = seen
    assert 0 < int(known.sum()) < known.numel()
    # Up to the first replaced token, what is seen is the volume's own; coarsest scales first.
    first = known[:, 0]
    assert torch.equal(rows[first, 0], batch["tokens"][first, 0])
    assert not torch.equal(rows, batch["tokens"])
    # Each call draws anew, so that the batches of one step differ.
    assert not torch.equal(rows, others)
    assert not torch.equal(known, known_next)
    each = torch.ones(known.shape)
    everything = task._mean_by_scale(each.masked_fill(known, 1e6), ~known)
    assert bool((everything <= 1).all())


def test_revealed_tokens_are_known_too(tokens: Path) -> None:
    objective = {"known_box_fraction": 0, "refinement_fraction": 1}
    random = torch.Generator().manual_seed(0)
    task = make_task(settings(objective=objective), tokens)
    known = task._draw_known(200, random)
    assert 0.01 < float(known.float().mean()) < 0.45
    assert not known[:, task.model.schedule.offsets[-1] :].any()  # it takes one pass
    assert task.model.config.refinement
    task = make_task(settings(objective={**objective, "refinement_fraction": 0}), tokens)
    assert not task._draw_known(200, random).any()
    assert not task.model.config.refinement


def test_what_drawing_at_once_loses_is_measured(tokens: Path) -> None:
    task = make_task(settings(data={"batch_size": 3, "previews": 0}), tokens)
    task.model.eval()
    with torch.no_grad():
        task.model.known.weight.normal_()
        found = task.evaluate()
        whole = make_task(settings(), tokens)
        whole.model.load_state_dict(task.model.state_dict())
        whole.model.eval()
        assert whole.evaluate() == pytest.approx(found)  # whatever the batch size
        task.model.known.weight.zero_()
        blind = task.evaluate()
    assert found["chain"] != pytest.approx(found["cross_entropy"], abs=1e-6)
    for key in ("", *(f"/scale_{k}" for k in range(3))):
        loss = found[f"cross_entropy{key}"] - found[f"chain{key}"]
        assert found[f"independence{key}"] == pytest.approx(loss, abs=1e-6)
    assert found["independence/scale_0"] == pytest.approx(0, abs=1e-6)  # of one token
    assert blind["chain"] == pytest.approx(blind["cross_entropy"], abs=1e-6)


def test_scales_are_weighted() -> None:
    schedule = ScaleSchedule(grids=((1, 1, 1), (2, 2, 2), (3, 2, 3)))
    assert scale_weights(schedule, 0).tolist() == pytest.approx([1 / 3] * 3)
    assert scale_weights(schedule, 1).tolist() == pytest.approx([n / 27 for n in (1, 8, 18)])
    half = scale_weights(schedule, 0.5)
    assert float(half[1] / half[0]) == pytest.approx(8**0.5)


def test_the_loss_is_the_mean_over_tokens_or_over_scales(tokens: Path) -> None:
    torch.manual_seed(0)
    losses = {}
    for balance in (0.0, 1.0):
        objective = {**CERTAIN["objective"], "scale_weight_power": balance}
        chosen = settings(**{**CERTAIN, "objective": objective})
        task = make_task(chosen, tokens)
        batch = next(task.batches(0, 0))
        with torch.no_grad():
            task.model.head.bias.copy_(torch.randn(task.model.codebook_size))
            logits = task.model(batch["tokens"], Condition(attributes=batch["attributes"]))
            each = token_losses(logits, batch["tokens"])
            losses[balance], named = task.loss(batch, 0)
        scales = torch.stack([part.mean() for part in each.split([1, 8, 64], dim=1)])
        expected = each.mean() if balance else scales.mean()
        torch.testing.assert_close(losses[balance], expected)
        torch.testing.assert_close(torch.stack([named[f"scale_{k}"] for k in range(3)]), scales)
    assert losses[0.0] != losses[1.0]


def test_smoothing_spreads_the_target() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 3, 5), torch.randint(5, (2, 3))
    probabilities = torch.nn.functional.one_hot(targets, 5) * 0.8 + 0.2 / 5
    expected = -(probabilities * logits.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(token_losses(logits, targets, 0.2), expected)
    assert token_losses(logits, targets).shape == (2, 3)


def test_marginals_are_frequencies_by_scale(tokens: Path) -> None:
    data = TokenDataset(tokens, split="train")
    marginals = Marginals.of(data)
    assert marginals.frequencies.shape == (3, data.codebook_size)
    torch.testing.assert_close(marginals.frequencies.sum(1), torch.ones(3))
    rows = torch.stack([data.pyramid(k).flatten()[0] for k in range(len(data))])
    count = int((rows[:, 1:9] == 9).sum())
    total = 12 * 8 + PRIOR * data.codebook_size
    assert float(marginals.frequencies[1, 9]) == pytest.approx((count + PRIOR) / total)
    entropy = marginals.entropy(rows)
    assert entropy.shape == rows.shape
    index = (rows[:, 1:9] == 9).nonzero()[0]
    found = float(entropy[:, 1:9][index[0], index[1]])
    assert found == pytest.approx(float(-marginals.frequencies[1, 9].log()))


def test_the_run_description_is_complete(tokens: Path, tmp_path: Path) -> None:
    description = make_task(settings(), tokens).describe()
    assert description == make_task(settings(), tokens).describe()
    assert json.loads(json.dumps(description)) == description
    assert description["model"]["condition"]["attributes"][0]["values"] == ["a", "b"]
    changed = {
        "model": settings(model__depth=3),
        "drop_probability": settings(condition__drop_probability=0.3),
        "objective": settings(objective={"label_smoothing": 0.1}),
        "data": settings(data__batch_size=2),
    }
    for name, chosen in changed.items():
        assert make_task(chosen, tokens).describe()[name] != description[name]
    other = write_tokens(tmp_path, tiny_tokenizer(), cases=8, noise=0.1)
    assert make_task(settings(), other).describe()["data"]["train"] != description["data"]["train"]


def test_the_seed_determines_the_weights(tokens: Path) -> None:
    biases = [
        make_task(settings(training__seed=seed), tokens).model.state_dict()["embed.weight"]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(biases[0], biases[1])
    assert not torch.equal(biases[0], biases[2])


def test_evaluation_batches_are_no_larger_than_training_batches(
    tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    shown: list[torch.Tensor] = []

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(first: Any, *rest: Any) -> Any:
            taken.append(len(first))
            return call(first, *rest)

        return counting

    results = []
    for size in (3, 4):
        chosen = settings(
            data={"batch_size": size, "previews": 4}, objective={"refinement_fraction": 0}
        )
        task = make_task(chosen, tokens, lambda _, volumes: shown.append(volumes))
        for name in ("forward", "start"):
            monkeypatch.setattr(task.model, name, counted(getattr(task.model, name)))
        task.model.eval()
        with torch.no_grad():
            results.append(task.evaluate())
    assert taken == [3, 1, 3, 1, 4, 4]
    assert results[0] == pytest.approx(results[1])
    torch.testing.assert_close(*shown)
