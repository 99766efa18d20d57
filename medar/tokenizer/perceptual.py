"""A perceptual loss: distance between features of a network trained on medical volumes.

The features are those of MedicalNet's ResNet-10 (Med3D, arXiv 1904.00625) after its stem and first
two stages, where they describe texture and edges; the deeper stages are left out. The weights come
from a local file, `resnet_10_23dataset.pth` as its authors release it: nothing is downloaded.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medar.errors import MedarError, one_line

FILE = "resnet_10_23dataset.pth"
"""MedicalNet's ResNet-10, as its authors name the file."""


class PerceptualLoss(nn.Module):
    """Squared distance of unit feature vectors, averaged over sites and depths.

    Args:
        path: the weights file.

    Raises:
        MedarError: the file cannot be read, or holds other weights.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.stages = _stages(Path(path)).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "PerceptualLoss":
        """Keep the features in evaluation mode: their normalisation must not follow a batch."""
        return self

    def forward(self, reconstruction: Tensor, volume: Tensor) -> Tensor:
        """Compare (B, C, X, Y, Z) with the same shape, each channel by itself.

        Both are scaled by the mean and standard deviation of `volume`, as in the network's own
        training; a wrong brightness or contrast is therefore still penalised.
        """
        axes = (2, 3, 4)
        mean = volume.float().mean(axes, keepdim=True)
        deviation = volume.float().std(axes, keepdim=True).clamp(min=1e-3)
        ours, real = (
            ((one.float() - mean) / deviation).flatten(0, 1).unsqueeze(1)
            for one in (reconstruction, volume)
        )
        losses = []
        for stage in self.stages.children():
            ours, real = stage(ours), stage(real)
            difference = functional.normalize(ours, dim=1) - functional.normalize(real, dim=1)
            losses.append(difference.square().sum(1).mean())
        return torch.stack(losses).mean()


def _stages(path: Path) -> nn.Sequential:
    from monai.networks.nets import resnet10

    network = resnet10(
        spatial_dims=3, n_input_channels=1, conv1_t_stride=2, feed_forward=False,
        shortcut_type="B", bias_downsample=False, act="relu",
    )  # fmt: skip
    names = ("conv1", "bn1", "layer1", "layer2")
    stages = nn.ModuleDict({name: getattr(network, name) for name in names})
    weights = read_weights(path, FILE)
    available = {name: weights[name] for name in stages.state_dict() if name in weights}
    try:
        stages.load_state_dict(available)
    except RuntimeError as error:
        raise MedarError(
            f"{path}: not the weights of MedicalNet's ResNet-10 ({one_line(error)}); "
            f"{FILE} is needed"
        ) from error
    stem = nn.Sequential(stages["conv1"], stages["bn1"], nn.ReLU())
    first = nn.Sequential(network.maxpool, stages["layer1"])
    return nn.Sequential(stem, first, stages["layer2"])


def read_weights(path: Path, needed: str) -> dict[str, Any]:
    """The tensors of a checkpoint, without the prefix that DataParallel adds to their names.

    Args:
        path: the file.
        needed: name of the expected file, for messages.

    Raises:
        MedarError: the file cannot be read, or contains no tensors.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise MedarError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # the unpickler raises all sorts of errors on damaged files
        raise MedarError(
            f"{path}: not a file of tensors by torch.save ({one_line(error, 80)}); "
            f"{needed} is needed"
        ) from error
    found = found.get("state_dict", found) if isinstance(found, dict) else {}
    return {str(name).removeprefix("module."): tensor for name, tensor in found.items()}
