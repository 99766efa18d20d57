"""`Plan`: how every volume of a data set is brought to one form. Readable, editable, versioned.

`medar data plan` derives it from the data set's fingerprint (`medar.data.planning`); it travels
with everything trained on the data, so that a file can be taken to the model and back.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from medar.data.intensity import IntensityRule
from medar.errors import MedarError
from medar.files import digest
from medar.settings import STRICT, load_yaml, save_yaml, to_dict
from medar.volume import ReadOptions, Shape3, Spacing

HEADER = """How medar brings every volume of this data set to one form.
Edit any value and run `medar data prepare` again: only what depends on it is made anew."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Target geometry and intensities of a prepared data set.

    Raises:
        MedarError: a spacing or size that is not positive, a size that the downsampling does not
            divide, or reading options that keep NaN and Inf.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    spacing: Spacing
    """Voxel sides after resampling, in mm, along RAS+ axes."""
    mode: Literal["volume", "patch"]
    """"volume": each case becomes one array of `size`, cropped or padded. "patch": cases keep
    their extent, and patches of `size` are cut (and padded, if need be) when they are loaded."""
    size: Shape3
    """Voxels that a model sees at once."""
    downsampling: Shape3
    """Factor from voxels to latent grid, per axis; smaller where the spacing is coarser."""
    centre: Literal["image", "foreground"] = "image"
    """What stays in the middle when a volume is cropped or padded: the image's centre, or that of
    the box around its foreground."""
    intensity: dict[str, IntensityRule] = field(default_factory=dict)
    """Rules by channel name, or by modality for one channel; "other" for what is not named."""
    interpolation: Literal["linear", "bspline"] = "linear"
    label_interpolation: Literal["linear", "nearest"] = "linear"
    """"linear": each label interpolated by itself, the largest wins."""
    channels: tuple[str, ...] = ()
    """Channel names, where there are several."""
    labels: dict[int, str] = field(default_factory=dict)
    ignore_label: int | None = None
    reading: ReadOptions = field(default_factory=ReadOptions)
    """What to do about files that leave a question open."""

    def __post_init__(self) -> None:
        check_reading(self.reading)
        if not all(0 < s < 1e4 for s in self.spacing):
            raise MedarError(f"spacing {list(self.spacing)}: positive numbers in mm are needed")
        if min(self.size) < 1 or min(self.downsampling) < 1:
            raise MedarError(
                f"size {list(self.size)}, downsampling {list(self.downsampling)}: "
                "whole numbers from 1 are needed"
            )
        if any(value < 1 for value in self.labels):
            raise MedarError(f"label values {sorted(self.labels)}: whole numbers from 1 are needed")
        if any(n % f for n, f in zip(self.size, self.downsampling, strict=True)):
            raise MedarError(
                f"size {list(self.size)} is no multiple of downsampling "
                f"{list(self.downsampling)}; choose a size that is"
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
    """Refuse to keep NaN and Inf: neither percentiles nor prepared volumes can hold them.

    Raises:
        MedarError: they are kept.
    """
    if options.nonfinite == "keep":
        raise MedarError(
            "nonfinite 'keep' (--nonfinite): prepared volumes hold finite numbers; 'error', 'min' "
            "or a number is needed"
        )
