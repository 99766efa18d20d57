"""Feature extractors with learnt weights, read from a local file.

MedicalNet (Med3D, arXiv 1904.00625): its 3D ResNet-10, averaged over the positions of the last
stage. RadImageNet (Mei et al., Radiology: AI 4(5), 2022): a 2D ResNet-50 over slices in three
planes, averaged over positions and slices ("2.5D", the usual way to evaluate volumes with it). Both
networks are MONAI's.

B batch, C channels, X Y Z voxels, F features of a channel, N volumes times channels.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from medar.errors import MedarError, one_line
from medar.tokenizer.perceptual import FILE, read_weights

SLICES = 16
"""Evenly spaced slices of each plane that RadImageNet sees."""

RADIMAGENET_FILE = "RadImageNet's ResNet50.pt"

CHILDREN = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
"""A ResNet's modules in order: RadImageNet's file names them by number."""

RESNET = {
    "conv1_t_stride": 2, "feed_forward": False, "shortcut_type": "B", "bias_downsample": False,
}  # fmt: skip
"""Arguments of both of MONAI's networks."""


class MedicalNet(nn.Module):
    """512 features per channel.

    Args:
        path: resnet_10_23dataset.pth.

    Raises:
        MedarError: the file cannot be read, or holds other weights.
    """

    def __init__(self, path: str | Path) -> None:
        from monai.networks.nets import resnet10

        super().__init__()
        self.network = resnet10(spatial_dims=3, n_input_channels=1, **RESNET)
        _load(self.network, read_weights(Path(path), FILE), Path(path), FILE)

    @torch.no_grad()
    def forward(self, volumes: Tensor) -> Tensor:
        """(B, C, X, Y, Z) to (B, C F); each channel is standardised, as in its training."""
        x = volumes.to(self.network.conv1.weight).flatten(0, 1).unsqueeze(1)
        axes = (2, 3, 4)
        x = (x - x.mean(axes, keepdim=True)) / x.std(axes, keepdim=True).clamp(min=1e-3)
        features: Tensor = self.network(x)
        return features.reshape(len(volumes), -1).double().cpu()


class RadImageNet(nn.Module):
    """2048 features per channel.

    Args:
        path: ResNet50.pt, with the names of RadImageNet's authors or of torchvision.

    Raises:
        MedarError: the file cannot be read, or holds other weights.
    """

    def __init__(self, path: str | Path) -> None:
        from monai.networks.nets import resnet50

        super().__init__()
        self.network = resnet50(spatial_dims=2, n_input_channels=3, **RESNET)
        weights = read_weights(Path(path), RADIMAGENET_FILE)
        weights = {_name_in_monai(name): tensor for name, tensor in weights.items()}
        _load(self.network, weights, Path(path), RADIMAGENET_FILE)

    @torch.no_grad()
    def forward(self, volumes: Tensor) -> Tensor:
        """(B, C, X, Y, Z) to (B, C F); the network was trained on intensities in [-1, 1]."""
        x = volumes.to(self.network.conv1.weight).flatten(0, 1)
        planes = [self._plane(x.movedim(axis, 1)) for axis in (1, 2, 3)]
        return torch.stack(planes).mean(dim=0).reshape(len(volumes), -1).double().cpu()

    def _plane(self, x: Tensor) -> Tensor:
        """(N, slices, height, width) to (N, F), the mean over evenly spaced slices."""
        indices = torch.linspace(0, x.shape[1] - 1, min(SLICES, x.shape[1])).round().long()
        slices = x[:, indices.to(x.device)]
        grey = slices.flatten(0, 1).unsqueeze(1).expand(-1, 3, -1, -1)
        features: Tensor = self.network(grey)
        return features.view(*slices.shape[:2], -1).mean(dim=1)


def _name_in_monai(name: str) -> str:
    """A parameter's name in MONAI's network: "backbone.4.0.conv1" is "layer1.0.conv1"."""
    first, _, rest = name.removeprefix("backbone.").partition(".")
    numbered = first.isdigit() and int(first) < len(CHILDREN)
    return f"{CHILDREN[int(first)]}.{rest}" if numbered else f"{first}.{rest}"


def _load(network: nn.Module, weights: dict[str, Tensor], path: Path, expected: str) -> None:
    """Load the weights that the network has; others, such as a classifier's, are ignored."""
    used = {name: weights[name] for name in network.state_dict() if name in weights}
    try:
        network.load_state_dict(used)
    except RuntimeError as error:
        raise MedarError(
            f"{path}: holds other weights ({one_line(error, 120)}); use {expected}"
        ) from error
    network.eval().requires_grad_(False)
