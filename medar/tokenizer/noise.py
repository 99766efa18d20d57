"""Noise that a detail decoder starts from: white, or correlated between neighbouring voxels.

What tokens do not hold is smooth: neighbouring voxels of the residual x - D(z) have correlations of
0.5 to 0.7, and its power at the highest frequencies is a hundredth of that at the lowest. A flow
from white noise must learn to remove the difference, which it does last; noise with the residual's
own correlation has nearly the right spectrum from the first step on.

The correlation between voxels d apart along an axis is r^d, as in an autoregressive process of
order one; that of the three axes is their product.

C channels, X Y Z voxels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

OFFSET = 0x5851F42D4C957F2D
"""Added to a seed before noise is drawn from it."""

Correlation = tuple[float, float, float]
"""Between neighbouring voxels along x, y and z; 0 is white noise."""

WHITE: Correlation = (0.0, 0.0, 0.0)

LARGEST = 0.9
"""Largest correlation that is measured: beyond it, noise varies too little over a volume."""


def draw_noise(seed: int, shape: Sequence[int], correlation: Correlation = WHITE) -> Tensor:
    """Noise of a seed, on the CPU: the same on every machine with the same torch.

    Args:
        seed: any integer from 0 on.
        shape: (C, X, Y, Z).
        correlation: between neighbouring voxels.
    """
    # Tokens are sampled from the same seed, and must not decide the noise.
    generator = torch.Generator().manual_seed((seed + OFFSET) % (1 << 63))
    return correlated(torch.randn(tuple(shape), generator=generator), correlation)


def correlated(white: Tensor, correlation: Correlation) -> Tensor:
    """White noise (..., X, Y, Z) with this correlation; mean 0 and variance 1 stay."""
    noise = white
    with torch.autocast(white.device.type, enabled=False):
        for axis, r in zip((-3, -2, -1), correlation, strict=True):
            if r:
                root = _root(noise.shape[axis], r, noise)
                noise = (noise.movedim(axis, -1) @ root.T).movedim(-1, axis)
    return noise.contiguous()


def measure_correlation(volumes: Sequence[Tensor]) -> Correlation:
    """The correlation between neighbouring voxels along each axis, of volumes with mean 0.

    Args:
        volumes: (C, X, Y, Z) each.

    Returns:
        Rounded to two decimals, so that devices agree; from 0 to `LARGEST`.
    """
    square = sum(float(volume.double().square().mean()) for volume in volumes)

    def along(axis: int) -> float:
        def product(volume: Tensor) -> float:
            pairs = volume.shape[axis] - 1
            if pairs < 1:
                return 0.0
            volume = volume.double()
            return float((volume.narrow(axis, 0, pairs) * volume.narrow(axis, 1, pairs)).mean())

        found = sum(map(product, volumes)) / square if square else 0.0
        return round(min(max(found, 0.0), LARGEST), 2)

    return along(-3), along(-2), along(-1)


def _root(size: int, r: float, like: Tensor) -> Tensor:
    """The lower triangular matrix L with (L L^T)_ij = r^|i - j|."""
    index = torch.arange(size, device=like.device)
    lag = index[:, None] - index
    root = torch.where(lag >= 0, r ** lag.clamp(min=0).double(), 0.0)
    root[:, 1:] *= (1 - r * r) ** 0.5
    return root.to(like.dtype)
