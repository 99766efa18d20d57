"""Extractors by name, learnt ones with weights of the right form and of no training."""

from pathlib import Path

import pytest
import torch
from small_volumes import smooth
from torch import nn

from medar.errors import MedarError
from medar.evaluation.extractors import make_extractor, make_extractors
from medar.evaluation.learnt import CHILDREN


def initialise(network: nn.Module) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
    return network.state_dict()


@pytest.fixture(scope="module")
def medicalnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from monai.networks.nets import resnet10

    network = resnet10(
        spatial_dims=3, n_input_channels=1, feed_forward=False, bias_downsample=False
    )
    path = tmp_path_factory.mktemp("weights") / "resnet_10.pth"
    named = {f"module.{name}": value for name, value in initialise(network).items()}
    torch.save({"state_dict": named}, path)
    return path


@pytest.fixture(scope="module")
def radimagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the authors' file: a sequence of the network's children, named by number."""
    from monai.networks.nets import resnet50

    network = resnet50(
        spatial_dims=2, n_input_channels=3, feed_forward=False, bias_downsample=False
    )
    path = tmp_path_factory.mktemp("weights") / "ResNet50.pt"
    numbered = {
        f"backbone.{CHILDREN.index(name.split('.')[0])}.{name.split('.', 1)[1]}": value
        for name, value in initialise(network).items()
    }
    torch.save(numbered, path)
    return path


@pytest.mark.parametrize(("name", "width"), [("radiomics-v1", 68), ("texture-v1", 45)])
def test_those_without_weights(name: str, width: int) -> None:
    extractor = make_extractor(name)
    assert (extractor.name, extractor.weights) == (name, None)
    assert extractor.compute(smooth(2, 8, 8, 8)).shape == (2, width)


@pytest.mark.parametrize(("name", "width"), [("medicalnet-v1", 512), ("radimagenet-v1", 2048)])
def test_learnt_ones_see_each_volume_by_itself(
    name: str, width: int, medicalnet: Path, radimagenet: Path
) -> None:
    path = medicalnet if name == "medicalnet-v1" else radimagenet
    extractor = make_extractor(name, path)
    assert extractor.weights
    volumes = smooth(2, 8, 10, 12).reshape(1, 2, 8, 10, 12)
    found = extractor.compute(volumes)
    assert found.shape == (1, 2 * width)
    assert found.dtype == torch.float64
    assert found.isfinite().all()
    alone = extractor.compute(volumes[:, 1:])
    torch.testing.assert_close(found[:, width:], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[:, :width], alone, rtol=1e-3)


def test_the_weights_of_the_file_are_used(medicalnet: Path, radimagenet: Path) -> None:
    deep = make_extractor("radimagenet-v1", radimagenet).compute.network
    found = torch.load(radimagenet, weights_only=True)
    assert torch.equal(deep.layer4[0].conv3.weight, found["backbone.7.0.conv3.weight"])
    solid = make_extractor("medicalnet-v1", medicalnet).compute.network
    named = torch.load(medicalnet, weights_only=True)["state_dict"]
    assert torch.equal(solid.layer3[0].conv1.weight, named["module.layer3.0.conv1.weight"])
    assert not deep.training
    assert not any(parameter.requires_grad for parameter in solid.parameters())


def test_what_cannot_be_made_is_refused_in_a_line(medicalnet: Path, tmp_path: Path) -> None:
    for names, weights, said in (
        (("inception",), None, "extractor 'inception': allowed are radiomics-v1"),
        (("medicalnet-v1",), None, "medicalnet-v1: its weights are needed"),
        (("radimagenet-v1",), medicalnet, "other weights .* ResNet50.pt is needed"),
        (("medicalnet-v1",), tmp_path / "none.pth", "none.pth: cannot be read"),
        (("medicalnet-v1", "radimagenet-v1"), medicalnet, "one with weights at a time"),
        (("texture-v1",), medicalnet, "weights are for the extractors"),
        ((), None, "no extractor is named"),
    ):
        with pytest.raises(MedarError, match=said) as caught:
            make_extractors(names, weights, "cpu")
        assert "\n" not in str(caught.value)
