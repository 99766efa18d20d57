"""Augmentation: anatomically plausible, and determined by the seed."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from medar.data.augmentation import Augmentation, Augmenter, mirrored_labels
from medar.errors import MedarError

LABELS = {1: "Kidney left", 3: "kidney RIGHT", 4: "liver"}
NOTHING = Augmentation(rotation=0, scaling=0, contrast=0, brightness=0, gamma=0, noise=0)
FLIP_ONLY = {"rotation": 0, "scaling": 0, "intensity_probability": 0}


def item(seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor([0, 1, 3, 4, -1], dtype=torch.int8)
    return {
        "image": torch.rand((2, 7, 8, 9), generator=generator) * 2 - 1,
        "label": values[torch.randint(5, (1, 7, 8, 9), generator=generator)],
        "annotated": torch.tensor([True, False, True]),
        "index": 5,
    }


def test_zero_magnitudes_change_nothing() -> None:
    augmenter = Augmenter(NOTHING, LABELS)
    for seed in range(10):
        before, after = item(seed), augmenter(item(seed), seed)
        assert all(torch.equal(after[key], before[key]) for key in ("image", "label", "annotated"))
        assert after["index"] == 5


def test_zero_probabilities_change_nothing() -> None:
    augmenter = Augmenter(Augmentation(affine_probability=0, intensity_probability=0), LABELS)
    assert torch.equal(augmenter(item(), 1)["image"], item()["image"])


def test_the_same_seed_gives_the_same_result() -> None:
    settings = Augmentation(flips=("x", "y", "z"))
    first, second = Augmenter(settings, LABELS), Augmenter(settings, LABELS)
    second(item(), 3)  # what was drawn before does not matter
    results = []
    for seed in range(8):
        a, b = first(item(), seed), second(item(), seed)
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["label"], b["label"])
        results.append(a["image"])
    assert all(not torch.equal(results[0], second) for second in results[1:])


def test_ranges_types_and_label_values_are_preserved() -> None:
    strong = Augmentation(
        flips=("x", "y", "z"), affine_probability=1, intensity_probability=1, rotation=45,
        scaling=0.5, contrast=1, brightness=1, gamma=1, noise=1,
    )  # fmt: skip
    augmenter = Augmenter(strong, LABELS)
    for seed in range(20):
        after = augmenter(item(), seed)
        assert after["image"].abs().max() <= 1
        assert after["image"].shape == (2, 7, 8, 9)
        assert set(after["label"].unique().tolist()) <= {-1, 0, 1, 3, 4}
        assert after["label"].dtype == torch.int8
        # MONAI's tensors would carry a history of transforms to the collating.
        assert {type(after[key]) for key in ("image", "label")} == {torch.Tensor}


def test_a_rotated_image_stays_in_its_range() -> None:
    turning = Augmenter(Augmentation(affine_probability=1, intensity_probability=0), {})
    for seed in range(10):
        for edge in (-1.0, 1.0):
            image = turning({"image": torch.full((1, 12, 13, 14), edge)}, seed)["image"]
            assert image.abs().max() <= 1


def test_the_input_is_not_modified() -> None:
    before = item()
    Augmenter(Augmentation(flips=("x",), affine_probability=1), LABELS)(before, 1)
    assert torch.equal(before["image"], item()["image"])
    assert torch.equal(before["label"], item()["label"])
    assert torch.equal(before["annotated"], item()["annotated"])


def test_image_and_label_move_together() -> None:
    image = torch.full((1, 16, 16, 16), -1.0)
    image[0, 3:8, 4:12, 5:13] = 1
    label = (image > 0).to(torch.uint8)
    settings = Augmentation(affine_probability=1, rotation=30, intensity_probability=0)
    augmenter = Augmenter(settings, {1: "box"})
    for seed in range(5):
        after = augmenter({"image": image, "label": label}, seed)
        assert not torch.equal(after["label"], label)
        overlap = ((after["image"] > 0) == (after["label"] > 0)).float().mean()
        assert overlap > 0.98


def test_a_shift_moves_image_and_label_by_whole_voxels() -> None:
    augmenter = Augmenter(Augmentation(shift=2, **FLIP_ONLY), LABELS)
    shifts = set()
    for seed in range(40):
        before, after = item(), augmenter(item(), seed)
        image, label = before["image"], before["label"]
        found = [
            (x, y, z)
            for x, y, z in product(range(-2, 3), repeat=3)
            if torch.equal(moved(image, (x, y, z), -1.0), after["image"])
        ]
        assert len(found) == 1
        assert torch.equal(moved(label, found[0], 0), after["label"])
        shifts.add(found[0])
    assert len(shifts) > 20
    assert {side for shift in shifts for side in shift} == {-2, -1, 0, 1, 2}


def moved(volume: torch.Tensor, shift: tuple[int, int, int], fill: float) -> torch.Tensor:
    """The volume rolled along each axis, with what wrapped around replaced."""
    rolled = volume.roll(shift, (1, 2, 3))
    for axis, step in zip((1, 2, 3), shift, strict=True):
        start, length = (0, step) if step > 0 else (rolled.shape[axis] + step, -step)
        rolled.narrow(axis, start, length).fill_(fill)
    return rolled


def test_nothing_is_flipped_by_default() -> None:
    assert Augmentation().flips == ()
    augmenter = Augmenter(Augmentation(**FLIP_ONLY), LABELS)
    assert all(torch.equal(augmenter(item(), s)["image"], item()["image"]) for s in range(20))


@pytest.mark.parametrize(("axis", "dim"), [("x", 1), ("y", 2), ("z", 3)])
def test_a_flip_mirrors_one_axis_half_of_the_time(axis: Any, dim: int) -> None:
    augmenter = Augmenter(Augmentation(flips=(axis,), **FLIP_ONLY), LABELS)
    before, flipped = item(), 0
    mirrored = before["label"].flip(dim)
    if axis == "x":
        left, right = mirrored == 1, mirrored == 3
        mirrored[left], mirrored[right] = 3, 1
    for seed in range(40):
        after = augmenter(item(), seed)
        if torch.equal(after["image"], before["image"]):
            assert torch.equal(after["label"], before["label"])
            assert torch.equal(after["annotated"], before["annotated"])
            continue
        flipped += 1
        assert torch.equal(after["image"], before["image"].flip(dim))
        assert torch.equal(after["label"], mirrored)
        # Only the left kidney was looked for: mirrored, it is the right one.
        expected = [False, True, True] if axis == "x" else [True, False, True]
        assert after["annotated"].tolist() == expected
    assert 10 < flipped < 30


def test_images_without_labels_are_augmented() -> None:
    augmenter = Augmenter(Augmentation(flips=("x",), affine_probability=1), LABELS)
    after = augmenter({"image": item()["image"], "index": 0}, 4)
    assert set(after) == {"image", "index"}


def test_mirrored_labels() -> None:
    assert mirrored_labels(LABELS) == {1: 3, 3: 1}
    assert mirrored_labels({1: "liver"}) == {}
    with pytest.raises(MedarError, match="'kidney_left' has no counterpart 'kidney right'"):
        Augmenter(Augmentation(flips=("x",)), {1: "kidney_left", 2: "liver"})
    Augmenter(Augmentation(flips=("y",)), {1: "kidney_left", 2: "liver"})


@pytest.mark.parametrize(
    "wrong",
    [
        {"affine_probability": 1.5},
        {"intensity_probability": -0.1},
        {"noise": -1},
        {"rotation": float("nan")},
        {"scaling": 1.0},
        {"flips": ("w",)},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(MedarError, match=rf"^{next(iter(wrong))}\S* must be "):
        Augmentation(**wrong)


def test_left_and_right_are_whole_words() -> None:
    labels = {1: "LeftParotid", 2: "RightParotid", 3: "hippocampus_l", 4: "hippocampus_r"}
    assert mirrored_labels(labels) == {1: 2, 2: 1, 3: 4, 4: 3}
    assert mirrored_labels({1: "bright spot", 2: "cleft"}) == {}


def test_rotations_account_for_spacing() -> None:
    spacing = np.diag([1.0, 1.0, 5.0])
    augmenter = Augmenter(Augmentation(rotation=30, scaling=0), {}, (1.0, 1.0, 5.0))
    for seed in range(5):
        matrix = augmenter._matrix(np.random.default_rng(seed))[:3, :3]
        in_mm = spacing @ matrix @ np.linalg.inv(spacing)
        assert in_mm @ in_mm.T == pytest.approx(np.eye(3), abs=1e-12)
        assert abs(in_mm - np.eye(3)).max() > 0.01
