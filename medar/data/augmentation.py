"""Augmentation that anatomy allows, drawn from a seed.

Left and right are not alike: nothing is flipped unless the caller says along which axis it may be,
and a left-right flip then swaps the labels whose names say left and right.
"""

import re
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medar.errors import MedarError
from medar.settings import STRICT
from medar.volume import Spacing

AXES = ("x", "y", "z")
SIDES = {
    "left": "right",
    "right": "left",
    "l": "r",
    "r": "l",
    "lh": "rh",
    "rh": "lh",
    "lt": "rt",
    "rt": "lt",
}
"""Words in labels' names that say a side, and what they become in a mirror."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What may be done to a training volume; a zero switches a part off.

    Raises:
        MedarError: a probability outside 0 to 1, or an amount that is negative or not finite, or a
            scaling of 1 or more.
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
            if not 0 <= getattr(self, name) < inf:
                raise MedarError(f"augmentation {name} {getattr(self, name)}: allowed from 0")
        if self.scaling >= 1:  # a size below 0 would be a mirror
            raise MedarError(f"augmentation scaling {self.scaling}: allowed from 0 to below 1")
        if any(axis not in AXES for axis in self.flips):
            raise MedarError(f"augmentation flips {list(self.flips)}: allowed x, y, z")


class Augmenter:
    """Applies an `Augmentation` to an image and its label map.

    Args:
        settings: what may be done.
        labels: values and names; a left-right flip swaps those whose names say left and right.
        spacing: mm, so that a rotation is one in the patient and not in voxels.

    Raises:
        MedarError: flips along x are asked for, and a name says left without a right counterpart.
    """

    def __init__(
        self, settings: Augmentation, labels: dict[int, str], spacing: Spacing = (1.0, 1.0, 1.0)
    ) -> None:
        self.settings = settings
        self.spacing = np.diag(spacing)
        self.swap = mirrored_labels(labels) if "x" in settings.flips else {}
        values = list(labels)
        self._mirrored = [values.index(self.swap.get(value, value)) for value in values]

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
        moves = self.settings.rotation or self.settings.scaling
        if moves and generator.random() < self.settings.affine_probability:
            parts = self._affine(parts, generator)
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

    def _affine(
        self, parts: dict[str, Tensor], generator: np.random.Generator
    ) -> dict[str, Tensor]:
        """A rotation and a change of size about the centre, in mm."""
        from monai.transforms import Affine

        matrix = self._matrix(generator)
        move = Affine(affine=matrix, padding_mode="border", image_only=True)
        modes = {"image": "bilinear", "label": "nearest"}
        # Plain tensors again: MONAI's own kind carries the transform's history along.
        moved = {
            key: move(part.float(), mode=modes[key]).as_tensor().to(part.dtype)
            for key, part in parts.items()
        }
        # Interpolation in float32 leaves the range by a rounding error.
        return {**moved, "image": moved["image"].clamp(-1, 1)}

    def _matrix(self, generator: np.random.Generator) -> npt.NDArray[np.float64]:
        """(4, 4): voxels from the centre after, to voxels from the centre before."""
        from scipy.spatial.transform import Rotation

        turn = self.settings.rotation * generator.uniform(-1, 1, 3)
        grow = 1 + self.settings.scaling * generator.uniform(-1, 1, 3)
        in_mm = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ np.diag(1 / grow)
        matrix = np.eye(4)
        matrix[:3, :3] = np.linalg.inv(self.spacing) @ in_mm @ self.spacing
        return matrix

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
    by_words = {_words(name): value for value, name in labels.items()}
    swap = {}
    for words, value in by_words.items():
        mirrored = tuple(SIDES.get(word, word) for word in words)
        if mirrored == words:
            continue
        if mirrored not in by_words:
            raise MedarError(
                f"flips along x: label {labels[value]!r} has no counterpart {' '.join(mirrored)!r} "
                "to swap with; leave x out of the flips"
            )
        swap[value] = by_words[mirrored]
    return swap


def _words(name: str) -> tuple[str, ...]:
    """The words of a label's name in lower case: "left_parotid" and "LeftParotid" have two."""
    return tuple(w.lower() for w in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+", name))
