"""Spectral power by frequency, which blur removes and over-sharpening adds.

Along each axis, a frequency is expressed as a fraction of the axis' Nyquist frequency. The radius
is the Euclidean norm of the three fractions: 1 if one axis alternates from voxel to voxel, sqrt(3)
in the corner where all three do. It refers to voxels, not to millimetres: with anisotropic spacing
it is an ellipsoid in physical space, and "high" means fine relative to the grid of each axis. The
mean is removed and a Hann window applied before the transform; otherwise the jump from one border
to the other would dominate the high frequencies.

B batch, C channels, X Y Z voxels.
"""

import torch
from torch import Tensor

HIGH = 2 / 3
"""Radius from which frequencies belong to the highest third; the corners beyond 1 do too."""

TINY = 1e-12
"""Lower limit of a denominator; a volume without detail has no power."""


def power_spectrum(volumes: Tensor) -> Tensor:
    """The windowed power of every frequency.

    Args:
        volumes: (..., X, Y, Z).

    Returns:
        (..., X, Y, Z // 2 + 1) of the orthonormal transform, as `torch.fft.rfftn` lays it out;
        white noise of variance v has about 0.05 v at each frequency, the window's mean power.
    """
    axes = (-3, -2, -1)
    centred = volumes.float() - volumes.float().mean(dim=axes, keepdim=True)
    for axis, size in zip(axes, volumes.shape[-3:], strict=True):
        # The zero ends of the window are left out, so that a single voxel keeps its weight.
        window = torch.hann_window(size + 2, periodic=False, device=volumes.device)[1:-1]
        centred = centred * window.view(-1, *[1] * (-axis - 1))
    spectrum = torch.fft.rfftn(centred, dim=axes, norm="ortho")
    power: Tensor = spectrum.real**2 + spectrum.imag**2
    return power


def radii(shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    """The radius of every frequency of `power_spectrum`, (X, Y, Z // 2 + 1), from 0 to sqrt(3)."""
    x, y, z = shape
    along = [torch.fft.fftfreq(n, d=0.5, device=device) for n in (x, y)]
    along.append(torch.fft.rfftfreq(z, d=0.5, device=device))
    grid = torch.meshgrid(*along, indexing="ij")
    return torch.stack(grid).square().sum(dim=0).sqrt()


def weights(shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    """How many frequencies each one of `power_spectrum` represents, its mirror image included.

    (Z // 2 + 1,): 1 for those along z that are their own mirror image, 2 for the others.
    """
    count = torch.full((shape[2] // 2 + 1,), 2.0, device=device)
    count[0] = 1.0
    if shape[2] % 2 == 0:
        count[-1] = 1.0
    return count


def band_power(volumes: Tensor, edges: tuple[float, ...]) -> Tensor:
    """Mean power in bands of radius.

    Args:
        volumes: (..., X, Y, Z).
        edges: lower ends of the bands, increasing; the last band extends to the corners. Frequency
            0 belongs to no band.

    Returns:
        (..., bands); 0 for a band without any frequency, in a small volume.
    """
    power = power_spectrum(volumes)
    shape = volumes.shape[-3:]
    count = weights(shape, power.device).expand(power.shape[-3:])
    radius = radii(shape, power.device)
    band = torch.bucketize(radius, torch.tensor(edges, device=power.device), right=True)
    member = torch.nn.functional.one_hot(band, len(edges) + 1).float()[..., 1:]
    member = member * (radius > 0)[..., None] * count[..., None]
    flat = member.flatten(0, 2)
    return power.flatten(-3) @ flat / flat.sum(dim=0).clamp(min=1.0)


EDGES = tuple(k / 12 for k in range(12))
"""Lower ends of the bands of `mean_power`."""


def mean_power(volumes: Tensor) -> Tensor:
    """Mean power in twelve bands of radius, averaged over channels: (B, 12)."""
    return band_power(volumes, EDGES).mean(dim=1)


def log_spectral_distance(decoded: Tensor, real: Tensor) -> float:
    """Root mean square over bands of the difference in power, in dB; 0 is ideal.

    Args:
        decoded: (N,) powers, averaged over volumes.
        real: as `decoded`.
    """
    difference = 10 * (decoded.clamp(min=TINY).log10() - real.clamp(min=TINY).log10())
    return float(difference.square().mean().sqrt())


def high_power(volumes: Tensor) -> Tensor:
    """Mean power in the highest third of frequencies, over channels: (B, C, X, Y, Z) -> (B,)."""
    return band_power(volumes, (HIGH,))[..., 0].mean(dim=1)


THIRDS = (0.0, 1 / 3, HIGH)
"""Radii from which the thirds of the frequencies begin: low, middle and high."""


def third_powers(volumes: Tensor) -> Tensor:
    """Mean power in each third of the frequencies, over channels: (B, C, X, Y, Z) -> (B, 3)."""
    return band_power(volumes, THIRDS).mean(dim=1)


def power_ratio(reconstruction: Tensor, real: Tensor) -> float:
    """Power in the highest third of frequencies of the reconstructions, divided by the real one.

    1 is as sharp as the real volumes, below 1 is blurred, above 1 noisy or over-sharpened.
    `high_frequency_error` measures whether detail is at the right position.

    Args:
        reconstruction: (B, C, X, Y, Z).
        real: as `reconstruction`; not necessarily the same volumes.
    """
    ratio = high_power(reconstruction).mean() / high_power(real).mean().clamp(min=TINY)
    return float(ratio)


def high_frequency_error(reconstruction: Tensor, real: Tensor) -> Tensor:
    """Relative error in the highest third of frequencies: (B,).

    The square root of the difference's power over that of the real volume: 0 if all detail is
    reproduced, 1 if it is missing, sqrt(2) if there is as much, but unrelated.

    Args:
        reconstruction: (B, C, X, Y, Z).
        real: the volumes that were reconstructed.
    """
    missed = high_power(reconstruction.float() - real.float())
    return (missed / high_power(real).clamp(min=TINY)).sqrt()
