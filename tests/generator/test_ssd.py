"""The state-space scan: chunked and sequential results, carried state, gradients, extremes."""

import re
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medar.generator.mixers import ssd

BATCH, HEADS, WIDTH, STATE = 2, 3, 4, 5
close = torch.testing.assert_close


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def inputs(
    length: int, seed: int = 0, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, log decays, b and c."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, length, HEADS, WIDTH, generator=draw)
    decay = -torch.rand(BATCH, length, HEADS, generator=draw)
    b, c = torch.randn(2, BATCH, length, STATE, generator=draw) * STATE**-0.5
    return x.to(device), decay.to(device), b.to(device), c.to(device)


def first_state(seed: int = 1) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, HEADS, WIDTH, STATE, generator=draw)


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 70),
    chunk=st.integers(1, 80),
    carried=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_chunks_equal_token_by_token(length: int, chunk: int, carried: bool, seed: int) -> None:
    state = first_state(seed) if carried else None
    given_inputs = inputs(length, seed)
    y, last = ssd.ssd_chunked(*given_inputs, chunk, state)
    expected, expected_last = ssd.ssd_recurrent(*given_inputs, state)
    assert y.shape == (BATCH, length, HEADS, WIDTH)
    close(y, expected, atol=1e-5, rtol=1e-5)
    close(last, expected_last, atol=1e-5, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(2, 70),
    cuts=st.sets(st.integers(1, 69), max_size=6),
    chunk=st.integers(1, 20),
)
def test_a_sequence_can_be_cut_anywhere(length: int, cuts: set[int], chunk: int) -> None:
    x, decay, b, c = inputs(length)
    whole, whole_last = ssd.ssd_chunked(x, decay, b, c, chunk)
    state, parts = None, []
    for start, end in pairwise([0, *sorted(cut for cut in cuts if cut < length), length]):
        part = slice(start, end)
        y, state = ssd.ssd_chunked(x[:, part], decay[:, part], b[:, part], c[:, part], chunk, state)
        parts.append(y)
    close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)
    close(state, whole_last, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("length", "chunk"), [(1, 4), (3, 4), (8, 4), (23, 4), (40, 7)])
def test_gradients_equal_those_token_by_token(length: int, chunk: int) -> None:
    weight, last_weight = torch.randn(BATCH, length, HEADS, WIDTH), first_state(2)
    found = []
    for chunked in (True, False):
        leaves = [tensor.requires_grad_() for tensor in (*inputs(length), first_state())]
        *sequence, state = leaves
        if chunked:
            y, last = ssd.ssd_chunked(*sequence, chunk, state)
        else:
            y, last = ssd.ssd_recurrent(*sequence, state)
        ((y * weight).sum() + (last * last_weight).sum()).backward()
        found.append([leaf.grad for leaf in leaves])
    for mine, expected in zip(*found, strict=True):
        close(mine, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("decay", [0.0, -1e-4, -50.0, -1e4])
def test_decays_of_any_size_stay_finite(decay: float) -> None:
    x, _, b, c = inputs(30)
    log_decay = torch.full((BATCH, 30, HEADS), decay, requires_grad=True)
    y, last = ssd.ssd_chunked(x.requires_grad_(), log_decay, b, c, 8)
    expected, expected_last = ssd.ssd_recurrent(x, log_decay, b, c)
    close(y, expected, atol=1e-5, rtol=1e-5)
    close(last, expected_last, atol=1e-5, rtol=1e-5)
    (y.sum() + last.sum()).backward()
    for leaf in (x, log_decay):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


def steps_and_rates(length: int) -> tuple[Tensor, Tensor]:
    return torch.rand(BATCH, length, HEADS) + 0.01, -torch.rand(HEADS) - 0.1


def test_the_scan_accepts_steps_and_rates() -> None:
    x, _, b, c = inputs(20)
    dt, rates = steps_and_rates(20)
    y, last = ssd.scan(x, dt, rates, b, c, 6, first_state())
    expected, expected_last = ssd.ssd_recurrent(x * dt[..., None], dt * rates, b, c, first_state())
    close(y, expected, atol=1e-5, rtol=1e-5)
    close(last, expected_last, atol=1e-5, rtol=1e-5)


def test_under_autocast_the_scan_is_fp32_inside() -> None:
    x, _, b, c = (tensor.bfloat16() for tensor in inputs(40))
    dt, rates = steps_and_rates(40)
    expected, expected_last = ssd.scan(x.float(), dt, rates, b.float(), c.float(), 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, last = ssd.scan(x, dt, rates, b, c, 8)
    assert (y.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(last, expected_last)
    assert torch.equal(y, expected.bfloat16())


def test_the_scan_path_is_reported_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ssd.scan_path("cpu") == "state-space scan: plain torch in chunks (on cpu)"
    assert ssd.scan_path().startswith("state-space scan: ")
    monkeypatch.setattr(ssd, "_KERNEL", "No module named 'mamba_ssm'")
    description = ssd.scan_path("cuda")
    assert re.search(r"plain torch in chunks \(no mamba_ssm: No module named", description)


@pytest.mark.gpu
def test_the_kernel_equals_chunks() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if not ssd.scan_path("cuda").startswith("state-space scan: Triton"):
        pytest.skip(ssd.scan_path("cuda"))
    length = 150
    draw = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", generator=draw)

    x, b, c = normal(2, length, 4, 32), normal(2, length, 16) / 4, normal(2, length, 16) / 4
    dt, rates = normal(2, length, 4).sigmoid(), -normal(4).exp()
    state = normal(2, 4, 32, 16)
    found = []
    for fast in (True, False):
        leaves = [tensor.clone().requires_grad_() for tensor in (x, dt, rates, b, c, state)]
        u, step, rate, key, query, before = leaves
        if fast:
            y, last = ssd.scan(u, step, rate, key, query, 64, before)
        else:
            decay = step * rate
            y, last = ssd.ssd_chunked(u * step[..., None], decay, key, query, 64, before)
        (y.square().mean() + last.square().mean()).backward()
        found.append([y, last, *(leaf.grad for leaf in leaves)])
    for mine, expected in zip(*found, strict=True):  # the kernel multiplies in TF32
        close(mine, expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max()))
