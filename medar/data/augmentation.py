"""Random augmentation of volumes and label maps, reproducible from a seed.

Left and right differ in anatomy: volumes are flipped only along axes that the caller allows, and
a left-right flip swaps the labels whose names contain left and right.
"""

import math
import re
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from medar.errors import MedarError
from medar.settings import (
    Fraction,
    FractionBelowOne,
    NonNegativeFloat,
    NonNegativeInt,
    settings,
)
from medar.volume import Spacing

AXES = ("x", "y", "z")
FILLS = {"image": -1.0, "label": 0.0, "source": math.nan}
"""What comes in at the border of each part of an item."""
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
"""Words in label names that stand for a side, and their mirrored counterparts."""


@settings
class Augmentation:
    """Random changes of training volumes; zero disables each of them."""

    flips: tuple[Literal["x", "y", "z"], ...] = ()
    """Axes along which a volume may be mirrored, each with probability 0.5. x is left-right."""
    shift: NonNegativeInt = 0
    """Largest shift along each axis, in whole voxels. Nothing is interpolated, and texture stays as
    it is; what comes in at the border has the lowest intensity, and no label."""
    affine_probability: Fraction = 0.5
    rotation: NonNegativeFloat = 10.0
    """Largest rotation about each axis, in degrees."""
    scaling: FractionBelowOne = 0.1
    """Largest relative change of size along each axis."""
    intensity_probability: Fraction = 0.5
    contrast: NonNegativeFloat = 0.15
    """Largest relative change of contrast, about the middle of the range."""
    brightness: NonNegativeFloat = 0.1
    """Largest shift, where the whole range is 2."""
    gamma: NonNegativeFloat = 0.2
    """Largest change of log gamma."""
    noise: NonNegativeFloat = 0.02
    """Largest standard deviation of added Gaussian noise, where the whole range is 2."""


class Augmenter:
    """Applies an `Augmentation` to an image, its label map and its source.

    Args:
        settings: which changes, and how large.
        labels: values and names; a left-right flip swaps those whose names contain left and right.
        spacing: mm, so that rotations are rigid in the patient's space rather than in voxels.

    Raises:
        MedarError: flips along x are enabled, and a label of one side has no counterpart.
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
        """Augment `image` (C, X, Y, Z) in [-1, 1] and, if present, `label` and `source`.

        The label map (1, X, Y, Z) and the source (1, X, Y, Z), NaN where unknown, are moved like
        the image; intensities change in the image alone. `annotated`, if present, follows the
        labels that a left-right flip swaps.
        """
        generator = np.random.default_rng(seed)
        parts: dict[str, Tensor] = {k: item[k] for k in FILLS if k in item}
        for axis in self.settings.flips:
            if generator.random() < 0.5:
                parts = self._flip(parts, axis)
                if axis == "x" and "annotated" in item:
                    item = {**item, "annotated": item["annotated"][self._mirrored]}
        if self.settings.shift:
            parts = self._shift(parts, generator)
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

    def _shift(self, parts: dict[str, Tensor], generator: np.random.Generator) -> dict[str, Tensor]:
        """A shift by whole voxels; the volume keeps its size."""
        limit = self.settings.shift
        steps = generator.integers(-limit, limit + 1, 3).tolist()
        # padding counts from the last axis; a negative one crops
        padding = [side for step in reversed(steps) for side in (step, -step)]
        return {key: pad(part, padding, value=FILLS[key]) for key, part in parts.items()}

    def _affine(
        self, parts: dict[str, Tensor], generator: np.random.Generator
    ) -> dict[str, Tensor]:
        """A rotation and a change of size about the centre, in mm."""
        from monai.transforms import Affine

        matrix = self._matrix(generator)
        move = Affine(affine=matrix, padding_mode="border", image_only=True)
        modes = {"image": "bilinear", "label": "nearest", "source": "bilinear"}
        # MONAI's MetaTensor would carry the history of transforms along.
        moved = {
            key: move(part.float(), mode=modes[key]).as_tensor().to(part.dtype)
            for key, part in parts.items()
        }
        # Interpolation in float32 leaves the range by a rounding error.
        for key in moved.keys() & {"image", "source"}:
            moved[key] = moved[key].clamp(-1, 1)
        return moved

    def _matrix(self, generator: np.random.Generator) -> npt.NDArray[np.float64]:
        """(4, 4): from output to input voxels, both relative to the centre."""
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
    """Label values that a left-right flip swaps.

    Raises:
        MedarError: a label of one side has no counterpart.
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
