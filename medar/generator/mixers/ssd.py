"""State-space duality: the recurrence of Mamba-2 (arXiv 2405.21060) as matrix products.

Each head has a state of P x N numbers, which token t updates:

    state = exp(log_decay[t]) * state + x[t] (outer) b[t]        y[t] = state c[t]

Unrolled, y[t] sums (c[t] . b[j]) exp(log_decay[j+1] + ... + log_decay[t]) x[j] over j <= t: masked
linear attention. Within chunks of Q tokens it is computed in this form; states are carried from
chunk to chunk, neighbours joined in pairs, so that M chunks take about 2 log2(M) sequential
operations. Every exponent is a sum of log decays, none above 0, so nothing overflows. Everything is
fp32.

B batch, L tokens, H heads, P width of a head, N state, Q tokens of a chunk, M chunks.
"""

import importlib
import warnings
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
from einops import einsum, rearrange
from torch import Tensor
from torch.nn.functional import pad


def _find_kernel() -> Callable[..., Any] | str:
    """mamba_ssm's kernel, or the reason why there is none."""
    try:
        with warnings.catch_warnings():  # deprecations in its own dependencies
            warnings.simplefilter("ignore")
            found = importlib.import_module("mamba_ssm.ops.triton.ssd_combined")
    except Exception as error:  # an optional library may be broken in any way
        return (str(error) or type(error).__name__).partition("\n")[0]
    kernel: Callable[..., Any] = found.mamba_chunk_scan_combined
    return kernel


_KERNEL = _find_kernel()  # here, as torch.compile cannot trace an import


def scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk: int, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The recurrence with steps dt and rates a: decay exp(dt a), input dt x.

    Uses mamba_ssm's Triton kernel on CUDA if it is installed, else `ssd_chunked`.

    Args:
        x: (B, L, H, P).
        dt: (B, L, H) float32, above 0.
        a: (H,) float32, below 0.
        b: (B, L, N), shared by the heads.
        c: (B, L, N), shared by the heads.
        chunk: Q.
        state: (B, H, P, N) before the first token; default 0.

    Returns:
        y (B, L, H, P) in the dtype of `x`, and the state after the last token, float32.
    """
    if x.is_cuda and callable(_KERNEL):
        y, last = _KERNEL(
            x,
            dt,
            a,
            b.unsqueeze(2),
            c.unsqueeze(2),
            chunk,
            initial_states=state,
            return_final_states=True,
        )
    else:
        y, last = ssd_chunked(x.float() * dt.unsqueeze(-1), dt * a, b, c, chunk, state)
    return y.to(x.dtype), last.float()


def scan_path(device: torch.device | str | None = None) -> str:
    """What `scan` uses on a device (default: CUDA where available), and why, as a message."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if torch.device(device).type != "cuda":
        return f"state-space scan: plain torch in chunks (on {torch.device(device).type})"
    if callable(_KERNEL):
        return f"state-space scan: Triton kernel of mamba_ssm {metadata.version('mamba_ssm')}"
    return f"state-space scan: plain torch in chunks (no mamba_ssm: {_KERNEL})"


def ssd_chunked(
    x: Tensor,
    log_decay: Tensor,
    b: Tensor,
    c: Tensor,
    chunk: int,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence by chunks.

    Args:
        x: (B, L, H, P), the step size included.
        log_decay: (B, L, H), not above 0.
        b: (B, L, N), shared by the heads.
        c: (B, L, N), shared by the heads.
        chunk: Q; L need not be a multiple of it.
        initial_state: (B, H, P, N); default 0.

    Returns:
        y (B, L, H, P) and the state after the last token, (B, H, P, N), both float32.
    """
    with torch.autocast(x.device.type, enabled=False):
        state = _first(x, b, initial_state)
        length = x.shape[1]
        chunk = min(chunk, length)
        # A token of zeros with decay 1 changes nothing: it can pad the last chunk.
        x, log_decay, b, c = (_chunks(one, chunk) for one in (x, log_decay, b, c))
        since = rearrange(log_decay, "B M Q H -> B M H Q").cumsum(-1)
        within = einsum(
            einsum(c, b, "B M t N, B M j N -> B M t j").unsqueeze(2) * _decay_between(since),
            x,
            "B M H t j, B M j H P -> B M t H P",
        )
        to_end = (since[..., -1:] - since).exp()
        added = einsum(to_end, x, b, "B M H j, B M j H P, B M j N -> B M H P N")
        before, last = _carry(since[..., -1], added, state)
        earlier = einsum(since.exp(), c, before, "B M H t, B M t N, B M H P N -> B M t H P")
        y = rearrange(within + earlier, "B M Q H P -> B (M Q) H P")[:, :length]
        return y, last


def ssd_recurrent(
    x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The recurrence token by token, as a reference; arguments and result as in `ssd_chunked`."""
    with torch.autocast(x.device.type, enabled=False):
        state = _first(x, b, initial_state)
        x, log_decay, b, c = (one.float() for one in (x, log_decay, b, c))
        y = []
        for t in range(x.shape[1]):
            state = log_decay[:, t, :, None, None].exp() * state
            state = state + einsum(x[:, t], b[:, t], "B H P, B N -> B H P N")
            y.append(einsum(state, c[:, t], "B H P N, B N -> B H P"))
        return torch.stack(y, dim=1), state


def _first(x: Tensor, b: Tensor, given: Tensor | None) -> Tensor:
    """The state before the first token, (B, H, P, N) float32."""
    if given is not None:
        return given.float()
    batch, _, heads, width = x.shape
    return x.new_zeros(batch, heads, width, b.shape[-1], dtype=torch.float32)


def _chunks(values: Tensor, chunk: int) -> Tensor:
    """(B, L, ...) to (B, M, Q, ...) float32, zeros at the end."""
    missing = -values.shape[1] % chunk
    filled = pad(values.float(), (0, 0) * (values.ndim - 2) + (0, missing))
    return filled.reshape(len(values), -1, chunk, *values.shape[2:])


def _decay_between(since: Tensor) -> Tensor:
    """Decay from token j to token t of a chunk, 0 for t < j.

    Args:
        since: (..., Q), log decays summed up to each token.

    Returns:
        (..., t, j).
    """
    later = torch.ones(since.shape[-1], since.shape[-1], dtype=torch.bool, device=since.device)
    apart = since.unsqueeze(-1) - since.unsqueeze(-2)
    # Before exp rather than after: a large exponent would be inf, and its gradient nan.
    return apart.masked_fill(later.triu(1), -torch.inf).exp()


def _carry(log_decay: Tensor, added: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The state before each chunk, (B, M, H, P, N), and after the last, (B, H, P, N).

    Two neighbouring chunks are one that decays by both: the states before such pairs are found
    first, then those between the two of a pair.

    Args:
        log_decay: (B, M, H), of whole chunks.
        added: (B, M, H, P, N), what each chunk leaves behind.
        state: (B, H, P, N), before the first.
    """
    chunks = added.shape[1]
    if chunks == 1:
        return state.unsqueeze(1), log_decay[:, 0, :, None, None].exp() * state + added[:, 0]
    if chunks % 2:
        log_decay, added = pad(log_decay, (0, 0, 0, 1)), pad(added, (0, 0) * 3 + (0, 1))
    left, right = log_decay[:, ::2], log_decay[:, 1::2]
    joined = right[..., None, None].exp() * added[:, ::2] + added[:, 1::2]
    before, last = _carry(left + right, joined, state)
    between = left[..., None, None].exp() * before + added[:, ::2]
    return torch.stack([before, between], dim=2).flatten(1, 2)[:, :chunks], last
