"""Intensities to the range that networks see, and back to the volume's own.

CT has units: a window of Hounsfield units, the same for every volume. MR has none (one scanner's
largest voxel is 112, another's 1.7 million): a window between two percentiles of each volume. Both
end in a `Window`, whose inverse is exact inside it.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medar.errors import MedarError
from medar.settings import settings

Floats = npt.NDArray[np.float32]

SAMPLE = 2_000_000
"""Voxels that percentiles are taken from; larger volumes are strided down to about this many."""

TISSUE_HU = -500.0
"""Hounsfield units above which a CT voxel counts as foreground: the body without air and lung."""


@settings
class Window:
    """A linear map between [low, high] in the volume's units and [-1, 1].

    Raises:
        MedarError: `high` is not above `low`.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if self.high <= self.low:
            raise MedarError(f"high must be greater than low {self.low:g}, got {self.high:g}")

    def normalise(self, array: npt.NDArray[Any]) -> Floats:
        """Any shape, in the volume's units, to [-1, 1]; values outside the window are clipped."""
        scaled: Floats = np.subtract(array, np.float32(self.low), dtype=np.float32)
        scaled *= np.float32(2.0 / (self.high - self.low))
        scaled -= np.float32(1.0)
        np.clip(scaled, -1.0, 1.0, out=scaled)
        return scaled

    def restore(self, array: npt.NDArray[Any]) -> Floats:
        """The inverse: [-1, 1] to the volume's units."""
        half = (self.high - self.low) / 2.0
        restored: Floats = np.multiply(array, np.float32(half), dtype=np.float32)
        restored += np.float32(self.low + half)
        return restored


@settings
class IntensityRule:
    """How a volume gets its `Window`.

    Raises:
        MedarError: `high` is not above `low`, or percentiles lie outside 0 to 100.
    """

    kind: Literal["window", "percentiles"]
    """"window": low and high are in the volume's units (HU). "percentiles": they are percentages
    of the volume's foreground, measured for each volume."""
    low: float
    high: float

    def __post_init__(self) -> None:
        if self.high <= self.low:
            raise MedarError(f"high must be greater than low {self.low:g}, got {self.high:g}")
        if self.kind == "percentiles" and not (self.low >= 0 and self.high <= 100):
            raise MedarError(
                f"percentiles must lie within 0 to 100, got {self.low:g} to {self.high:g}"
            )

    def fit(self, array: npt.NDArray[Any]) -> Window:
        """The window for one channel of a volume, (X, Y, Z).

        Raises:
            MedarError: the channel is constant, so that no percentile window exists.
        """
        if self.kind == "window":
            return Window(low=self.low, high=self.high)
        values = foreground(array, None)
        low, high = (float(v) for v in np.percentile(values, [self.low, self.high]))
        if high <= low:
            low, high = float(array.min()), float(array.max())
        if high <= low:
            raise MedarError(f"every voxel is {low:g}: a constant volume has no intensity range")
        return Window(low=low, high=high)


def foreground(array: npt.NDArray[Any], modality: str | None) -> npt.NDArray[Any]:
    """The foreground voxels of one channel, flat, thinned to about `SAMPLE`.

    CT: above -500 HU. Anything else: above the volume's smallest value, which drops the zeros
    around a masked or skull-stripped volume. If there is no foreground, all voxels are returned.
    """
    flat = np.asarray(array).reshape(-1)
    flat = flat[:: max(1, flat.size // SAMPLE)]
    chosen = flat[flat > (TISSUE_HU if modality == "CT" else flat.min())]
    return chosen if chosen.size else flat
