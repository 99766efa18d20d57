"""Muon: its iteration, its steps, the weights that it trains, and resumption with it."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_resume import Signalled
from torch import Tensor, nn
from toy import Toy, settings

from medar.training import fit
from medar.training.muon import (
    COEFFICIENTS,
    ITERATIONS,
    Muon,
    hidden_matrices,
    orthogonalised,
)
from medar.training.optimisers import Optimisers
from medar.training.task import weight_decay_groups


@pytest.mark.parametrize("shape", [(8, 8), (4, 30), (30, 4)])
def test_singular_values_become_one_and_vectors_stay(shape: tuple[int, int]) -> None:
    left, _ = torch.linalg.qr(torch.randn(shape[0], min(shape)))
    right, _ = torch.linalg.qr(torch.randn(shape[1], min(shape)))
    values = torch.linspace(0.05, 3.0, min(shape))
    result = orthogonalised((left * values @ right.T)[None])[0]
    between = left.T @ result @ right
    assert bool((between.diag() > 0.6).all() and (between.diag() < 1.3).all())
    torch.testing.assert_close(between, torch.diag(between.diag()), atol=1e-3, rtol=0)


def test_the_iteration_on_the_small_matrix_equals_that_on_the_whole() -> None:
    matrix = torch.randn(6, 50)
    x = matrix / matrix.norm()
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = COEFFICIENTS[0] * x + (COEFFICIENTS[1] * gram + COEFFICIENTS[2] * gram @ gram) @ x
    torch.testing.assert_close(orthogonalised(matrix[None])[0], x, atol=1e-4, rtol=1e-3)


def test_matrices_of_a_batch_do_not_mix() -> None:
    matrices = torch.randn(3, 5, 7) * torch.tensor([1.0, 100.0, 1e-4])[:, None, None]
    alone = torch.cat([orthogonalised(one[None]) for one in matrices])
    torch.testing.assert_close(orthogonalised(matrices), alone)


def _step(parameter: Tensor, gradient: Tensor, **options: float) -> Tensor:
    trained = nn.Parameter(parameter.clone())
    optimiser = Muon([{"params": [trained]}], lr=0.1, weight_decay=options.get("decay", 0.0))
    trained.grad = gradient.clone()
    optimiser.step()
    return trained.detach() - parameter


def test_a_kernel_is_a_matrix_with_a_row_per_output() -> None:
    kernel, gradient = torch.randn(2, 6, 4, 3, 3, 3)
    change = _step(kernel, gradient)
    torch.testing.assert_close(change.flatten(1), _step(kernel.flatten(1), gradient.flatten(1)))


def test_steps_are_as_long_as_those_of_adamw_whatever_the_gradient() -> None:
    weight, gradient = torch.randn(2, 64, 64)
    for scale in (1e-3, 1.0, 1e3):
        change = _step(weight, scale * gradient)
        assert float(change.square().mean().sqrt()) == pytest.approx(0.1 * 0.2, rel=0.15)


def test_weights_decay() -> None:
    weight, gradient = torch.randn(2, 8, 8)
    decayed = _step(weight, gradient, decay=0.5) - _step(weight, gradient)
    torch.testing.assert_close(decayed, -0.1 * 0.5 * weight)


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    chosen = settings(optimiser="muon")
    optimisers = Optimisers(
        {"model": weight_decay_groups(network)}, hidden_matrices(network), chosen
    )

    def train(value: float) -> None:
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, value)
        optimisers.step(torch.tensor(value == value))

    train(1.0)
    weights = [parameter.detach().clone() for parameter in network.parameters()]
    average = optimisers.state_dict()["model/muon"]["state"][0]["average"].clone()
    train(float("nan"))
    assert all(map(torch.equal, weights, network.parameters()))
    assert torch.equal(average, optimisers.state_dict()["model/muon"]["state"][0]["average"])
    train(1.0)
    assert not any(map(torch.equal, weights, network.parameters()))


def test_muon_trains_linear_layers_and_convolutions_but_not_heads_and_tables() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 4)
            self.position = nn.Parameter(torch.zeros(3, 4))
            self.body = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Conv3d(4, 4, 3))
            self.depthwise = nn.Conv3d(4, 4, 3, groups=4)
            self.head = nn.Linear(4, 2)

    network = Network()
    assert hidden_matrices(network) == {network.body[0].weight, network.body[2].weight}


def test_each_parameter_has_one_optimiser() -> None:
    task = Toy()
    groups = task.parameter_groups()
    for optimiser in ("adamw", "muon"):
        chosen = settings(optimiser=optimiser)
        state = Optimisers(groups, hidden_matrices(task.model), chosen).state_dict()
        assert list(state) == ["model", "model/muon"][: 1 + (optimiser == "muon")]
        sizes = [len(group["params"]) for one in state.values() for group in one["param_groups"]]
        assert sum(sizes) == len(list(task.model.parameters()))


def test_an_interrupted_run_resumes(
    tmp_path: Path, same_runs: Callable[[Path, Path], None]
) -> None:
    chosen = settings(optimiser="muon")
    with pytest.raises(KeyboardInterrupt):
        fit(Signalled(11, signal.SIGTERM, noise=0.1), chosen, tmp_path / "a")
    fit(Toy(noise=0.1), chosen, tmp_path / "a")
    whole = fit(Toy(noise=0.1), chosen, tmp_path / "b")
    same_runs(tmp_path / "a", tmp_path / "b")
    assert whole.metrics != fit(Toy(noise=0.1), settings(), tmp_path / "c").metrics
