"""Quantisation over scales: sums, prefixes, gradients, precision, several processes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from forking import forking
from torch import Tensor

from medar.errors import MedarError
from medar.tokenizer.codebooks import CodebookSettings, EMACodebook, make_codebook
from medar.tokenizer.quantiser import (
    MultiScaleQuantiser,
    Phi,
    QuantiserSettings,
    nearest_phi,
)
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.validation import CodeUsage

SCHEDULE = ScaleSchedule.from_latent((3, 5, 4), 4)
KINDS = [
    CodebookSettings(kind="ema", size=32, width=6),
    CodebookSettings(kind="gradient", size=32, width=6),
    CodebookSettings(kind="fsq", fsq_levels=(5, 5), width=6),
    CodebookSettings(kind="bsq", size=64, width=6),
    CodebookSettings(kind="product", size=36, width=6),
]
every_kind = pytest.mark.parametrize(
    "codebook", KINDS, ids=lambda settings: f"{settings.kind}-{settings.size}"
)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Seed torch and use one thread, because several would only wait for each other here."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(codebook: CodebookSettings = KINDS[0], **settings: Any) -> MultiScaleQuantiser:
    return MultiScaleQuantiser(make_codebook(codebook), SCHEDULE, QuantiserSettings(**settings))


def latents(batch: int = 2) -> Tensor:
    return torch.randn(batch, 6, *SCHEDULE.latent)


def fitted(steps: int = 30) -> MultiScaleQuantiser:
    """A quantiser with an EMA codebook trained on random latents and an untrained phi."""
    quantiser = make()
    for _ in range(steps):
        quantiser(latents(8))
    return quantiser.eval()


@every_kind
def test_contributions_add_up_to_the_quantised_latent(codebook: CodebookSettings) -> None:
    quantiser = make(codebook).eval()
    for phi in quantiser.phis:
        torch.nn.init.normal_(phi.conv.weight, std=0.1)  # type: ignore[arg-type,union-attr]
    latent = latents()
    taken = quantiser(latent)
    assert [index.shape for index in taken.indices] == [(2, tokens) for tokens in SCHEDULE.tokens]
    torch.testing.assert_close(
        torch.stack(quantiser.contributions(taken.indices)).sum(0),
        taken.latent,
        atol=1e-5,
        rtol=1e-5,
    )
    torch.testing.assert_close(quantiser.decode(taken.indices), taken.latent, atol=1e-5, rtol=1e-5)
    assert torch.equal(quantiser.decode(taken.indices, upto=4), quantiser.decode(taken.indices))
    for indices, again in zip(taken.indices, quantiser.encode(latent), strict=True):
        assert torch.equal(indices, again)


def test_encoding_matches_a_plain_implementation() -> None:
    """Step by step per scale: average, divide, nearest, multiply, upsample, phi, subtract."""
    quantiser = fitted()
    codes = quantiser.codebook.lookup(torch.arange(32))
    rest = latents()
    found = quantiser.encode(rest)
    for k, grid in enumerate(SCHEDULE.grids):
        small = torch.nn.functional.interpolate(rest, grid, mode="area")
        gain = quantiser.gains[k]
        index = torch.cdist(small.flatten(2).mT / gain, codes[None]).argmin(dim=2)
        assert torch.equal(index, found[k])
        up = torch.nn.functional.interpolate(
            gain * codes[index].mT.reshape(2, 6, *grid), SCHEDULE.latent, mode="trilinear"
        )
        phi = quantiser.phis[nearest_phi(k, 4, 4)]
        rest = rest - (0.5 * up + 0.5 * phi.conv(up))  # type: ignore[operator]


def test_gains_are_the_magnitudes_of_what_each_scale_quantises() -> None:
    quantiser = make()
    latent = 7 * latents(8)
    quantiser(latent)
    rest = quantiser.eval()(latent)
    first = latent.mean(dim=(2, 3, 4)).square().mean().sqrt()
    assert quantiser.gains[0] == pytest.approx(float(first), rel=1e-3)
    assert rest.residual_energy[-1] < 1
    quantiser.train()
    for _ in range(200):
        quantiser(0.5 * latent)
    assert quantiser.gains[0] == pytest.approx(float(first) / 2, rel=0.05)
    same = make(scale_gains=False)
    same(latent)
    assert torch.equal(same.gains, torch.ones(4))


@pytest.mark.parametrize("codebook", KINDS[3:], ids=lambda settings: settings.kind)
def test_no_direction_of_the_latent_is_left_out(codebook: CodebookSettings) -> None:
    quantiser, latent = make(codebook, phi_ratio=0.0), latents(64)
    quantiser(latent)
    rest = latent - quantiser.eval()(latent).latent
    variances = torch.linalg.eigvalsh(rest.transpose(0, 1).flatten(1).cov())
    assert float(variances.max()) < 0.8


@every_kind
def test_a_repeated_grid_quantises_what_is_left(codebook: CodebookSettings) -> None:
    schedule = ScaleSchedule(grids=((1, 1, 1), *3 * [SCHEDULE.latent]))
    settings = QuantiserSettings(phi_ratio=0.0)
    quantiser = MultiScaleQuantiser(make_codebook(codebook), schedule, settings)
    for _ in range(20):
        quantiser(latents(8))
    latent = latents(8)
    taken = quantiser.eval()(latent)
    *_, first, second, third = taken.residual_energy.tolist()
    assert third < second < first < 1
    assert all(map(torch.equal, taken.indices, quantiser.encode(latent)))
    torch.testing.assert_close(quantiser.decode(taken.indices), taken.latent, atol=1e-5, rtol=1e-5)


def test_items_bypass_the_quantiser_only_in_training() -> None:
    quantiser, latent = make(bypass_probability=1.0, scale_dropout=0.5), latents()
    assert torch.equal(quantiser(latent).latent, latent)
    assert not torch.equal(quantiser.eval()(latent).latent, latent)
    half, many = make(bypass_probability=0.5, scale_dropout=0.0), latents(40)
    passed = (half(many).latent == many).flatten(1).all(dim=1)
    assert 8 < passed.sum() < 32


def test_inputs_are_running_sums_on_the_next_grids() -> None:
    quantiser = fitted()
    indices = quantiser.encode(latents())
    inputs = quantiser.inputs(indices)
    assert [tensor.shape[2:] for tensor in inputs] == list(SCHEDULE.grids[1:])
    for k, actual in enumerate(inputs, 1):
        expected = torch.nn.functional.adaptive_avg_pool3d(
            quantiser.decode(indices, upto=k), SCHEDULE.grids[k]
        )
        torch.testing.assert_close(actual, expected)
    for prefix in (quantiser.inputs(indices[:2]), quantiser.inputs(indices, upto=2)):
        assert len(prefix) == 2
        assert all(torch.equal(a, b) for a, b in zip(prefix, inputs, strict=False))


def test_each_scale_reduces_the_residual() -> None:
    left = fitted()(latents(8)).residual_energy
    assert left.shape == (4,)
    assert bool((left.diff() <= 0).all())
    assert 0 < float(left[-1]) < 0.6


def test_residual_energy_is_relative_to_the_latent() -> None:
    quantiser = fitted()
    latent = latents()
    taken = quantiser(latent)
    expected = (latent - taken.latent).square().mean() / latent.square().mean()
    torch.testing.assert_close(taken.residual_energy[-1], expected)


@every_kind
def test_gradients_pass_straight_through_to_the_latent(codebook: CodebookSettings) -> None:
    quantiser = make(codebook)
    latent = latents().requires_grad_()
    weights = latents()
    taken = quantiser(latent)
    (found,) = torch.autograd.grad((taken.latent * weights).sum(), latent, retain_graph=True)
    torch.testing.assert_close(found, weights)
    taken.loss.backward()
    assert all(parameter.grad is not None for parameter in quantiser.parameters())


def test_the_loss_is_commitment_and_codebook_terms_over_running_sums() -> None:
    quantiser = make(KINDS[1], commitment_weight=0.25).eval()
    latent = latents()
    taken = quantiser(latent)
    errors = [
        (quantiser.decode(taken.indices, upto=k) - latent).square().mean() for k in (1, 2, 3, 4)
    ]
    torch.testing.assert_close(taken.loss, 1.25 * torch.stack(errors).mean())


@every_kind
def test_codebook_and_phi_learn_to_reconstruct(codebook: CodebookSettings) -> None:
    quantiser = make(codebook)
    optimiser = torch.optim.Adam(quantiser.parameters(), lr=0.02)
    latent = latents(4)
    first = float(quantiser(latent).residual_energy[-1])
    for _ in range(40):
        optimiser.zero_grad()
        quantiser(latent).loss.backward()
        optimiser.step()
    last = float(quantiser(latent).residual_energy[-1])
    assert last < 0.8 * first


def test_dropout_keeps_a_prefix_of_each_item() -> None:
    quantiser = fitted()
    quantiser.settings = QuantiserSettings(scale_dropout=0.7)
    latent = latents(40)
    indices = quantiser.encode(latent)
    prefixes = torch.stack([quantiser.decode(indices, upto=k) for k in (1, 2, 3, 4)])
    result = quantiser.train()(latent).latent
    apart = (prefixes - result).detach().abs().amax(dim=(2, 3, 4, 5))
    kept = apart.argmin(dim=0) + 1
    assert float(apart.amin(dim=0).max()) < 1e-5
    assert set(kept.tolist()) == {1, 2, 3, 4}
    assert 4 < int((kept == 4).sum()) < 20


def test_scale_dropout_applies_only_in_training() -> None:
    quantiser = fitted()
    quantiser.settings = QuantiserSettings(scale_dropout=1.0)
    latent = latents()
    taken = quantiser(latent)
    torch.testing.assert_close(quantiser.decode(taken.indices), taken.latent)


@every_kind
def test_outer_autocast_changes_nothing(codebook: CodebookSettings) -> None:
    quantiser = make(codebook).eval()
    latent = latents()
    plain = quantiser(latent)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = quantiser(latent)
        again = quantiser.encode(latent)
        decoded = quantiser.decode(plain.indices)
    assert torch.equal(cast.latent, plain.latent)
    assert cast.latent.dtype == decoded.dtype == torch.float32
    assert torch.equal(decoded, quantiser.decode(plain.indices))
    for index, other, third in zip(plain.indices, cast.indices, again, strict=True):
        assert torch.equal(index, other)
        assert torch.equal(index, third)


def test_the_codebook_starts_with_the_first_training_batch_only() -> None:
    quantiser = make().eval()
    assert isinstance(quantiser.codebook, EMACodebook)
    quantiser(latents())
    assert quantiser.codebook.needs_start()
    quantiser.train()(latents(8))
    assert not quantiser.codebook.needs_start()
    usage = CodeUsage(SCHEDULE, 32)
    usage.update(quantiser.encode(latents(8)))
    assert usage.total_usage > 0.9


@pytest.mark.parametrize("restarts", [True, False])
def test_a_collapsed_codebook_recovers_or_warns(restarts: bool) -> None:
    settings = CodebookSettings(size=32, width=6, ema_decay=0.9, restart_dead_codes=restarts)
    schedule = ScaleSchedule.from_latent((4, 4, 4), 3)
    quantiser = MultiScaleQuantiser(make_codebook(settings), schedule)
    batch = torch.randn(8, 6, 4, 4, 4)
    quantiser(batch)
    assert isinstance(quantiser.codebook, EMACodebook)
    quantiser.codebook.set_codes(100 * quantiser.codebook.codes)
    for _ in range(60):
        quantiser(batch)
    usage = CodeUsage(schedule, 32)
    usage.update(quantiser.encode(batch))
    assert (usage.total_usage > 0.8) == restarts
    assert bool(usage.warnings("")) != restarts


def test_phis_are_assigned_as_in_var() -> None:
    assert [nearest_phi(k, 8, 4) for k in range(8)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [nearest_phi(k, 5, 1) for k in range(5)] == [0] * 5
    assert nearest_phi(0, 1, 4) == 0


@pytest.mark.parametrize(("scales", "phis", "made"), [(1, 4, 1), (2, 4, 2), (4, 4, 4), (4, 2, 2)])
def test_every_phi_is_used(scales: int, phis: int, made: int) -> None:
    schedule = ScaleSchedule.from_latent((3, 5, 4), scales)
    codebook = make_codebook(KINDS[0])
    quantiser = MultiScaleQuantiser(codebook, schedule, QuantiserSettings(phi_count=phis))
    assert len(quantiser.phis) == made
    quantiser(latents()).loss.backward()
    assert all(parameter.grad is not None for parameter in quantiser.parameters())


def test_phi_mixes_its_input_with_a_convolution() -> None:
    x = latents()
    torch.testing.assert_close(Phi(6, 0.5)(x), x)
    phi = Phi(6, 0.25)
    torch.nn.init.normal_(phi.conv.weight)
    torch.testing.assert_close(phi(x), 0.75 * x + 0.25 * phi.conv(x))


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda q: q(torch.zeros(1, 5, 3, 5, 4)), r"must have shape \(batch, 6, x, y, z\)"),
        (lambda q: q.encode(torch.zeros(1, 6, 3, 5, 5)), "latent grid 3x5x5"),
        (lambda q: q.decode(q.encode(latents()), upto=5), "upto must be from 1 to 4, got 5"),
        (lambda q: q.decode(q.encode(latents()), upto=0), "upto must be from 1 to 4, got 0"),
        (lambda q: q.contributions([]), "0 scales of tokens"),
        (lambda q: QuantiserSettings(scale_dropout=1.5), "scale_dropout must be at most 1"),
        (lambda q: QuantiserSettings(phi_ratio=-1), "phi_ratio must be at least 0"),
        (lambda q: QuantiserSettings(phi_count=0), "phi_count must be at least 1"),
        (lambda q: QuantiserSettings(commitment_weight=-1), "commitment_weight must be at least 0"),
    ],
)
def test_bad_calls_are_refused(call: Callable[[MultiScaleQuantiser], Any], reason: str) -> None:
    with pytest.raises(MedarError, match=reason):
        call(make().eval())


def train(latent: Tensor, rank: int, world: int) -> dict[str, Tensor]:
    """Train a quantiser for some steps on every `world`-th item."""
    torch.manual_seed(3 + rank)  # draws come from the first process all the same
    quantiser = make(CodebookSettings(size=24, width=6, dead_code_threshold=0.5), scale_dropout=0.5)
    outputs = [quantiser(batch[rank::world]).latent for batch in latent]
    return {**quantiser.codebook.state_dict(), "outputs": torch.stack(outputs)}


def train_apart(rank: int, folder: str) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    state = train(torch.load(f"{folder}/latent", weights_only=True), rank, 2)
    torch.save(state, f"{folder}/{rank}")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    latent = torch.randn(5, 4, 6, *SCHEDULE.latent)
    torch.save(latent, tmp_path / "latent")
    context = forking()
    workers = [
        context.Process(target=train_apart, args=(n, str(tmp_path)), daemon=True) for n in range(2)
    ]
    for worker in workers:
        worker.start()
    alone = train(latent, 0, 1)
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    for rank in range(2):
        state = torch.load(tmp_path / str(rank), weights_only=True)
        torch.testing.assert_close(state.pop("outputs"), alone["outputs"][:, rank::2])
        for key, value in state.items():
            torch.testing.assert_close(value, alone[key])
