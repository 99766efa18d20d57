"""`Plan`: the form that every volume of a data set is brought to. Readable and editable.

`medar data plan` derives it from the data set's fingerprint (`medar.data.planning`); it is
saved with every model trained on the data, so that a file can be taken to the model and back.
"""

from dataclasses import field
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from medar.errors import MedarError
from medar.files import digest
from medar.notebook import html_table
from medar.settings import PositiveInt, load_yaml, save_yaml, settings, to_dict
from medar.volume import ReadOptions, Shape3
from medar.volume.geometry import MOST_VOXELS

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


HEADER = """The form that medar brings every volume of this data set to.
Edit any value and run `medar data prepare` again: only what depends on it is redone."""


Side = Annotated[float, Field(gt=0, lt=1e4)]
"""A voxel side in mm."""


@settings
class Plan:
    """Target geometry and intensities of a prepared data set.

    Raises:
        MedarError: a value out of its range, a size that is not a multiple of the downsampling, or
            reading options that keep NaN and Inf.
    """

    spacing: tuple[Side, Side, Side]
    """Voxel sides after resampling, in mm, along RAS+ axes."""
    mode: Literal["volume", "patch"]
    """"volume": each case becomes one array of `size`, cropped or padded. "patch": cases keep
    their extent, and patches of `size` are cut (and padded, if need be) when they are loaded."""
    size: tuple[PositiveInt, PositiveInt, PositiveInt]
    """Voxels that a model sees at once."""
    downsampling: tuple[PositiveInt, PositiveInt, PositiveInt]
    """Factor from voxels to the latent grid, per axis; smaller where the spacing is coarser."""
    centre: Literal["image", "foreground"] = "image"
    """What stays in the middle when a volume is cropped or padded: the image's centre, or that of
    the box around its foreground."""
    intensity: dict[str, IntensityRule] = field(default_factory=dict)
    """Rules by channel name, or by modality for one channel; "other" for all others."""
    interpolation: Literal["linear", "bspline"] = "linear"
    label_interpolation: Literal["linear", "nearest"] = "linear"
    """"linear": each label is interpolated on its own and the largest wins."""
    channels: tuple[str, ...] = ()
    """Channel names, if there are several."""
    labels: dict[PositiveInt, str] = field(default_factory=dict)
    ignore_label: int | None = None
    reading: ReadOptions = field(default_factory=ReadOptions)
    """How to read files that leave a question open."""

    def __post_init__(self) -> None:
        check_reading(self.reading)
        if prod(self.size) > MOST_VOXELS:
            raise MedarError(
                f"size must be at most {MOST_VOXELS} voxels together, got {list(self.size)}"
            )
        if any(n % f for n, f in zip(self.size, self.downsampling, strict=True)):
            raise MedarError(
                f"size must be a multiple of downsampling {list(self.downsampling)}, got "
                f"{list(self.size)}"
            )

    @property
    def latent(self) -> Shape3:
        """Sites of the latent grid: size over downsampling."""
        x, y, z = (n // f for n, f in zip(self.size, self.downsampling, strict=True))
        return x, y, z

    @property
    def label_dtype(self) -> np.dtype[Any]:
        """The smallest signed integers that hold every label value, and -1 for "unknown"."""
        return np.min_scalar_type(-1 - max([0, *self.labels, self.ignore_label or 0]))

    @property
    def digest(self) -> str:
        """A hash of every setting."""
        return digest(to_dict(self))

    @property
    def sole_modality(self) -> str | None:
        """The modality of files that do not state one: the only one that has a rule, else None."""
        names = [name for name in self.intensity if name != "other"]
        return names[0] if len(self.intensity) == len(names) == 1 and not self.channels else None

    def rules(self, channels: int, modality: str | None) -> tuple[IntensityRule, ...]:
        """The intensity rule of each channel of a volume.

        Raises:
            MedarError: another number of channels, or no rule for a channel or modality.
        """
        if channels != (len(self.channels) or 1):
            named = f" ({', '.join(self.channels)})" if self.channels else ""
            raise MedarError(
                f"{channels} channel{'s' * (channels != 1)}; the plan has "
                f"{len(self.channels) or 1}{named}; give it all of these and no others"
            )
        names = self.channels or (modality or "other",)
        missing = [n for n in names if n not in self.intensity and "other" not in self.intensity]
        if missing:
            raise MedarError(
                f"no intensity rule for {missing[0]!r}; the plan has: {', '.join(self.intensity)}; "
                "add one, or state the modality (--modality)"
            )
        return tuple(self.intensity.get(n) or self.intensity["other"] for n in names)

    def _repr_html_(self) -> str:
        """For notebooks: a table of the values."""
        rows = [(key, value) for key, value in to_dict(self).items() if value not in ({}, [], None)]
        latent = "x".join(map(str, self.latent))
        return html_table(
            "Plan: spacing in mm, sizes in voxels",
            rows,
            notes=f"The latent grid has {latent} sites.",
        )

    def save(self, path: str | Path) -> None:
        """Write the plan as commented YAML."""
        save_yaml(self, path, header=HEADER)

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Read a plan.

        Raises:
            MedarError: naming the file, the key and what is wrong with it.
        """
        return load_yaml(cls, path)


def check_reading(options: ReadOptions) -> None:
    """Check that NaN and Inf are not kept: percentiles and prepared volumes cannot hold them.

    Raises:
        MedarError: `nonfinite` is "keep".
    """
    if options.nonfinite == "keep":
        raise MedarError(
            "nonfinite (--nonfinite) must be 'error', 'min' or a number, got 'keep': prepared "
            "volumes hold finite numbers only"
        )
