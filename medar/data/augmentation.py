"""Augmentation that anatomy allows, drawn from a seed.

Left and right are not alike: nothing is flipped unless the caller says along which axis it may be,
and a left-right flip then swaps the labels whose names say left and right.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from medar.errors import MedarError
from medar.settings import STRICT

AXES = ("x", "y", "z")


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What may be done to a training volume; a zero switches a part off.

    Raises:
        MedarError: a probability outside 0 to 1, or a negative amount.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    flips: tuple[Literal["x", "y", "z"], ...] = ()
    """Axes along which a volume may be mirrored, each with probability 0.5. x is left-right."""
    affine_probability: float = 0.5
    rotation: float = 10.0
    """Largest rotation about each axis, in degrees."""
    scaling: float = 0.1
    """Largest relative change of size along each axis."""
    intensity_probability: float = 0.5
    contrast: float = 0.15
    """Largest relative change of contrast, about the middle of the range."""
    brightness: float = 0.1
    """Largest shift, where the whole range is 2."""
    gamma: float = 0.2
    """Largest change of log gamma."""
    noise: float = 0.02
    """Largest standard deviation of added Gaussian noise, where the whole range is 2."""

    def __post_init__(self) -> None:
        for name in ("affine_probability", "intensity_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise MedarError(f"augmentation {name} {getattr(self, name)}: allowed 0 to 1")
        for name in ("rotation", "scaling", "contrast", "brightness", "gamma", "noise"):
            if getattr(self, name) < 0:
                raise MedarError(f"augmentation {name} {getattr(self, name)}: allowed from 0")
        if any(axis not in AXES for axis in self.flips):
            raise MedarError(f"augmentation flips {list(self.flips)}: allowed x, y, z")


class Augmenter:
    """Applies an `Augmentation` to an image and its label map.

    Args:
        settings: what may be done.
        labels: values and names; "left" and "right" in names make pairs to swap.

    Raises:
        MedarError: flips along x are asked for, and a name says left without a right counterpart.
    """

    def __init__(self, settings: Augmentation, labels: dict[int, str]) -> None:
        from monai.transforms import RandAffined

        self.settings = settings
        self.swap = mirrored_labels(labels) if "x" in settings.flips else {}
        values = list(labels)
        self._mirrored = [values.index(self.swap.get(value, value)) for value in values]
        turn = float(np.deg2rad(settings.rotation))
        self._affine = RandAffined(
            keys=("image", "label"),
            prob=settings.affine_probability,
            rotate_range=(turn,) * 3,
            scale_range=(settings.scaling,) * 3,
            mode=("bilinear", "nearest"),
            padding_mode="border",
            allow_missing_keys=True,
        )

    def __call__(self, item: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
        """Augment `image` (C, X, Y, Z) in [-1, 1] and, if there, `label` (1, X, Y, Z).

        `annotated`, if there, follows the labels that a left-right flip swaps.
        """
        generator = np.random.default_rng(seed)
        parts: dict[str, Tensor] = {k: item[k] for k in ("image", "label") if k in item}
        for axis in self.settings.flips:
            if generator.random() < 0.5:
                parts = self._flip(parts, axis)
                if axis == "x" and "annotated" in item:
                    item = {**item, "annotated": item["annotated"][self._mirrored]}
        if self.settings.affine_probability and (self.settings.rotation or self.settings.scaling):
            self._affine.set_random_state(seed=int(generator.integers(2**31)))
            kinds = {key: part.dtype for key, part in parts.items()}
            moved = self._affine({key: part.float() for key, part in parts.items()})
            # Plain tensors again: MONAI's own kind carries the transform's history along.
            parts = {key: moved[key].as_tensor().to(kinds[key]) for key in parts}
        if generator.random() < self.settings.intensity_probability:
            parts["image"] = self._intensity(parts["image"], generator)
        return {**item, **parts}

    def _flip(self, parts: dict[str, Tensor], axis: str) -> dict[str, Tensor]:
        flipped = {key: part.flip(1 + AXES.index(axis)) for key, part in parts.items()}
        if axis == "x" and self.swap and "label" in flipped:
            label = flipped["label"]
            swapped = label.clone()
            for value, other in self.swap.items():
                swapped[label == value] = other
            flipped["label"] = swapped
        return flipped

    def _intensity(self, image: Tensor, generator: np.random.Generator) -> Tensor:
        """Contrast, brightness, gamma and noise; the image stays in [-1, 1]."""
        s = self.settings
        contrast, brightness, gamma = generator.uniform(-1, 1, 3)
        image = image * float(1 + contrast * s.contrast) + float(brightness * s.brightness)
        image = image.clamp(-1, 1)
        if s.gamma:
            image = ((image + 1) / 2).pow(float(np.exp(gamma * s.gamma))) * 2 - 1
        if s.noise:
            sigma = generator.uniform(0, s.noise)
            drawn = generator.standard_normal(tuple(image.shape), dtype=np.float32)
            image = image + torch.from_numpy(drawn) * float(sigma)
        return image.clamp(-1, 1)


def mirrored_labels(labels: dict[int, str]) -> dict[int, int]:
    """Label values that trade places when left and right do.

    Raises:
        MedarError: a name says left or right and its counterpart is missing.
    """
    by_name = {name.lower(): value for value, name in labels.items()}
    swap = {}
    for name, value in by_name.items():
        for side, other in (("left", "right"), ("right", "left")):
            if side in name:
                counterpart = name.replace(side, other)
                if counterpart not in by_name:
                    raise MedarError(
                        f"flips along x: label {name!r} has no counterpart {counterpart!r} to "
                        "swap with; leave x out of the flips"
                    )
                swap[value] = by_name[counterpart]
    return swap
