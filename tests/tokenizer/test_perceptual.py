"""The perceptual loss, with weights of the right form and of no training."""

from pathlib import Path

import pytest
import torch
from torch import nn

from medar.errors import MedarError
from medar.tokenizer.perceptual import PerceptualLoss


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file laid out as MedicalNet's: under "state_dict", each name behind "module."."""
    from monai.networks.nets import resnet10

    torch.manual_seed(0)
    network = resnet10(
        spatial_dims=3, n_input_channels=1, feed_forward=False, bias_downsample=False
    )
    path = tmp_path_factory.mktemp("weights") / "resnet_10.pth"
    named = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": named}, path)
    return path


def test_it_is_zero_at_equality_and_grows_with_blur(weights: Path) -> None:
    loss, volume = PerceptualLoss(weights), torch.randn(1, 2, 12, 12, 12)
    slight = nn.functional.avg_pool3d(volume, 3, stride=1, padding=1)
    strong = nn.functional.avg_pool3d(volume, 5, stride=1, padding=2)
    assert loss(volume, volume) == 0
    assert 0 < loss(0.9 * volume + 0.1 * slight, volume) < loss(slight, volume)
    assert loss(slight, volume) < loss(strong, volume)


def test_only_the_reconstruction_learns(weights: Path) -> None:
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


def test_the_weights_of_the_file_are_used(weights: Path) -> None:
    found = torch.load(weights, weights_only=True)["state_dict"]
    used = PerceptualLoss(weights).stages.state_dict()
    assert torch.equal(used["0.0.weight"], found["module.conv1.weight"])
    assert torch.equal(used["2.0.conv2.weight"], found["module.layer2.0.conv2.weight"])


def test_other_files_are_refused_in_a_line(tmp_path: Path) -> None:
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
