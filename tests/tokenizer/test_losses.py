"""Losses: zero at equality, masked for labels that are not annotated; the perceptual loss."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medar.errors import MedarError
from medar.losses import label_losses, to_classes
from medar.tokenizer.losses import (
    Discriminator,
    DiscriminatorConfig,
    adaptive_weight,
    adversarial_loss,
    discriminator_loss,
    feature_matching,
    frequency_loss,
)
from medar.tokenizer.perceptual import PerceptualLoss


@pytest.fixture
def case() -> tuple[Tensor, Tensor]:
    """Logits (2, 4, 3, 3, 3) of three labels, and classes (2, 1, 3, 3, 3) with unknown voxels."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, 3, 3, generator=generator)
    return logits, torch.randint(-1, 4, (2, 1, 3, 3, 3), generator=generator)


ALL = torch.ones(2, 3, dtype=torch.bool)


def test_the_frequency_loss_is_zero_at_equality_and_counts_blur_more_than_a_shift() -> None:
    volume = torch.randn(1, 1, 12, 12, 10)
    blurred = nn.functional.avg_pool3d(volume, 3, stride=1, padding=1)
    assert frequency_loss(volume, volume) == 0
    assert frequency_loss(volume.roll(1, 2), volume) < 1e-3
    assert frequency_loss(blurred, volume) > 0.5


def test_the_frequency_loss_has_a_gradient_at_zero_amplitude() -> None:
    flat = torch.zeros(1, 1, 4, 4, 4, requires_grad=True)
    frequency_loss(flat, torch.randn(1, 1, 4, 4, 4)).backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def test_fully_annotated_cases_get_plain_cross_entropy(case: tuple[Tensor, Tensor]) -> None:
    logits, classes = case
    expected = nn.functional.cross_entropy(logits, classes[:, 0], ignore_index=-1)
    torch.testing.assert_close(label_losses(logits, classes, ALL).cross_entropy, expected)


def test_dice_is_that_of_each_label_over_the_known_voxels() -> None:
    classes = torch.tensor([0, 1, 1, 2, -1]).view(1, 1, 5, 1, 1)
    logits = torch.log(torch.tensor(
        [[0.5, 0.2, 0.1, 0.1, 0.1], [0.3, 0.7, 0.6, 0.1, 0.8], [0.2, 0.1, 0.3, 0.8, 0.1]]
    )).view(1, 3, 5, 1, 1)  # fmt: skip
    first = 2 * (0.7 + 0.6) / ((0.3 + 0.7 + 0.6 + 0.1) + 2)
    second = 2 * 0.8 / ((0.2 + 0.1 + 0.3 + 0.8) + 1)
    loss = label_losses(logits, classes, torch.ones(1, 2, dtype=torch.bool)).dice
    assert loss.item() == pytest.approx(1 - (first + second) / 2, abs=1e-4)


def test_both_losses_are_zero_at_the_target(case: tuple[Tensor, Tensor]) -> None:
    _, classes = case
    sure = 50.0 * nn.functional.one_hot(classes[:, 0].clamp(min=0), 4).movedim(-1, 1)
    losses = label_losses(sure, classes, ALL)
    assert losses.cross_entropy < 1e-6
    assert losses.dice < 1e-4


def test_unknown_voxels_contribute_nothing(case: tuple[Tensor, Tensor]) -> None:
    logits, classes = case
    elsewhere = torch.where(classes == -1, torch.randn_like(logits) * 9, logits)
    assert label_losses(elsewhere, classes, ALL) == label_losses(logits, classes, ALL)
    nothing = label_losses(logits.requires_grad_(), torch.full_like(classes, -1), ALL)
    assert nothing.cross_entropy == nothing.dice == 0
    sum(nothing).backward()  # type: ignore[union-attr]
    assert logits.grad is not None
    assert not logits.grad.any()


def test_unannotated_labels_are_merged_into_background(
    case: tuple[Tensor, Tensor],
) -> None:
    """Moving probability between the background and label 2, not annotated, changes nothing."""
    logits, classes = case
    annotated = torch.tensor([[True, False, True]] * 2)
    both = torch.logaddexp(logits[:, 0], logits[:, 2])
    fraction = torch.rand_like(both)
    moved = logits.clone()
    moved[:, 0], moved[:, 2] = both + fraction.log(), both + (1 - fraction).log()
    before, after = (label_losses(tensor, classes, annotated) for tensor in (logits, moved))
    torch.testing.assert_close(tuple(after), tuple(before))
    counted, recounted = (label_losses(tensor, classes, ALL) for tensor in (logits, moved))
    assert (recounted.cross_entropy - counted.cross_entropy).abs() > 0.01


def test_labels_outside_the_annotated_set_are_ignored(
    case: tuple[Tensor, Tensor],
) -> None:
    logits, classes = case
    annotated = torch.tensor([[True, False, True]] * 2)
    without = torch.where(classes == 2, 0, classes)
    assert label_losses(logits, classes, annotated) == label_losses(logits, without, annotated)


def test_unannotated_labels_are_not_pushed_towards_background() -> None:
    logits = torch.zeros(1, 3, 2, 2, 2, requires_grad=True)
    annotated = torch.tensor([[True, False]])
    background = torch.zeros(1, 1, 2, 2, 2)
    label_losses(logits, background, annotated).cross_entropy.backward()
    assert logits.grad is not None
    assert (logits.grad[:, 1] > 0).all()
    assert (logits.grad[:, 2] < 0).all()


def test_cases_without_annotation_have_no_loss(case: tuple[Tensor, Tensor]) -> None:
    losses = label_losses(*case, torch.zeros_like(ALL))
    assert losses.cross_entropy.abs() < 1e-6
    assert losses.dice == 0


def test_label_values_become_classes_in_the_order_of_the_plan() -> None:
    label = torch.tensor([-1, 0, 7, 3, 7], dtype=torch.int8)
    assert to_classes(label, [3, 7]).tolist() == [-1, 0, 2, 1, 2]
    assert to_classes(label, [7, 3]).tolist() == [-1, 0, 1, 2, 1]


def discriminator(**changes: Any) -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(DiscriminatorConfig(**{"width": 4, "layers": 2, **changes}))


def test_each_scale_scores_patches_and_returns_features() -> None:
    judged = discriminator(layers=1, discriminators=2)(torch.randn(2, 1, 16, 8, 12))
    assert [score.shape[:2] for score in judged.scores] == [(2, 1), (2, 1)]
    assert judged.scores[0].shape[2:] > judged.scores[1].shape[2:]
    assert len(judged.features) == 2 + 3


def test_sizes_below_the_minimum_are_refused() -> None:
    judge = discriminator()
    side = judge.config.smallest
    assert judge(torch.randn(1, 1, side, side, side)).scores[0].numel() >= 1
    with pytest.raises(MedarError, match="layers 2 and discriminators 1 need sides of at least 8"):
        judge(torch.randn(1, 1, side, side, side - 1))


def test_a_discriminator_learns_to_separate_noise_from_blur() -> None:
    judge = discriminator()
    optimiser = torch.optim.Adam(judge.parameters(), lr=1e-2, betas=(0.5, 0.9))
    losses = []
    for _ in range(30):
        real = torch.randn(4, 1, 8, 8, 8)
        fake = nn.functional.avg_pool3d(torch.randn(4, 1, 8, 8, 8), 3, stride=1, padding=1)
        loss = discriminator_loss(judge(real).scores, judge(fake).scores)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]


def test_the_hinge_loss_is_zero_beyond_its_margin() -> None:
    good, bad = [torch.full((1, 1, 2, 2, 2), 1.5)], [torch.full((1, 1, 2, 2, 2), -1.5)]
    assert discriminator_loss(good, bad) == 0
    assert discriminator_loss(bad, good) == 2.5
    assert adversarial_loss(bad) == 1.5


def test_feature_matching_gradients_reach_only_the_reconstruction() -> None:
    real, fake = (torch.randn(1, 2, 3, 3, 3, requires_grad=True) for _ in range(2))
    assert feature_matching([real], [real]) == 0
    feature_matching([real], [fake]).backward()
    assert real.grad is None
    assert fake.grad is not None


def test_the_adaptive_weight_is_the_ratio_of_gradients() -> None:
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    first, second = 6 * weight.square().sum() / 2, weight @ torch.tensor([0.0, 2.0])
    assert adaptive_weight(first, second, weight).item() == pytest.approx(6 * 5 / 2, rel=1e-3)
    assert adaptive_weight(first, second, weight, limit=2.0).item() == 2
    assert adaptive_weight(first, 0 * second, weight).item() == 1e4
    (first + second).backward()
    assert weight.grad is not None


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"layers": 0}, "layers must be at least 1"), ({"width": 6}, "multiple of 4")],
)
def test_invalid_values_are_refused(changes: dict[str, int], words: str) -> None:
    with pytest.raises(MedarError, match=words):
        DiscriminatorConfig(**changes)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file laid out as MedicalNet's: under "state_dict", with names prefixed by "module."."""
    from monai.networks.nets import resnet10

    torch.manual_seed(0)
    network = resnet10(
        spatial_dims=3, n_input_channels=1, feed_forward=False, bias_downsample=False
    )
    path = tmp_path_factory.mktemp("weights") / "resnet_10.pth"
    named = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": named}, path)
    return path


def test_the_perceptual_loss_is_zero_at_equality_and_grows_with_blur(weights: Path) -> None:
    loss, volume = PerceptualLoss(weights), torch.randn(1, 2, 12, 12, 12)
    slight = nn.functional.avg_pool3d(volume, 3, stride=1, padding=1)
    strong = nn.functional.avg_pool3d(volume, 5, stride=1, padding=2)
    assert loss(volume, volume) == 0
    assert 0 < loss(0.9 * volume + 0.1 * slight, volume) < loss(slight, volume)
    assert loss(slight, volume) < loss(strong, volume)


def test_perceptual_gradients_reach_only_the_reconstruction(weights: Path) -> None:
    loss = PerceptualLoss(weights).train()
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    volume = torch.randn(1, 1, 12, 12, 12)
    reconstruction = torch.randn(1, 1, 12, 12, 12, requires_grad=True)
    loss(reconstruction, volume).backward()
    assert reconstruction.grad is not None
    assert reconstruction.grad.isfinite().all()
    assert reconstruction.grad.any()
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


def test_weights_are_loaded_from_the_file(weights: Path) -> None:
    found = torch.load(weights, weights_only=True)["state_dict"]
    used = PerceptualLoss(weights).stages.state_dict()
    assert torch.equal(used["0.0.weight"], found["module.conv1.weight"])
    assert torch.equal(used["2.0.conv2.weight"], found["module.layer2.0.conv2.weight"])


def test_other_files_are_refused_in_one_line(tmp_path: Path) -> None:
    other, text = tmp_path / "other.pth", tmp_path / "text.pth"
    torch.save({"conv1.weight": torch.zeros(2)}, other)
    text.write_text("hello")
    for path, words in [
        (other, "not the weights of MedicalNet"),
        (text, "not a file of tensors"),
        (tmp_path / "none.pth", "cannot be read"),
    ]:
        with pytest.raises(MedarError, match=words) as raised:
            PerceptualLoss(path)
        assert "\n" not in str(raised.value)
