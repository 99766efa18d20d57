"""Backbones and heads as MONAI's networks.

medar wraps MONAI's DynUNet, SegResNet and SwinUNETR and replaces their last layer, a 1x1x1
convolution, by its own: names of weights differ by a prefix, and by the name of the head.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from medar.errors import MedarError
from medar.segmentation.backbones import Backbone
from medar.segmentation.backbones.monai import DynUNetBackbone, SegResNetBackbone, SwinUNETRBackbone

PREFIX = "network."
"""Prefix of names in a wrapped network."""
REPEATED = "skip_layers."
"""Prefix under which DynUNet repeats weights."""
HEADS: dict[type[Backbone], str] = {
    DynUNetBackbone: "output_block.conv.conv",
    SegResNetBackbone: "conv_final.2.conv",
    SwinUNETRBackbone: "out.conv.conv",
}
"""MONAI's names of the last layer."""


def monai_names(backbone: Backbone) -> dict[str, str]:
    """MONAI's name of each weight of a backbone, and of "head.weight" and "head.bias".

    Raises:
        MedarError: MONAI has no such backbone; its first weight is named.
    """
    first = next(iter(backbone.state_dict()))
    if type(backbone) not in HEADS:
        raise MedarError(
            f"weight {first!r}: has no counterpart in MONAI; only the backbones dynunet, segresnet "
            "and swinunetr have one"
        )
    names = {name: name.removeprefix(PREFIX) for name in backbone.state_dict()}
    head = HEADS[type(backbone)]
    return {**names, "head.weight": f"{head}.weight", "head.bias": f"{head}.bias"}


def definition(backbone: Backbone, channels: int, classes: int) -> dict[str, Any]:
    """MONAI's network of the same shape, as in a bundle's configuration.

    Args:
        backbone: one that MONAI has.
        channels: of the image.
        classes: of the logits, including the background.

    Raises:
        MedarError: see `monai_names`.
    """
    monai_names(backbone)
    network: Any = backbone.network
    common = {"in_channels": channels, "out_channels": classes}
    if isinstance(backbone, DynUNetBackbone):
        return {
            "_target_": "monai.networks.nets.DynUNet",
            "spatial_dims": 3,
            **common,
            "kernel_size": _lists(network.kernel_size),
            "strides": _lists(network.strides),
            "upsample_kernel_size": _lists(network.upsample_kernel_size),
            "filters": list(network.filters),
            "res_block": backbone.residual,
            "trans_bias": network.trans_bias,
        }
    if isinstance(backbone, SegResNetBackbone):
        return {
            "_target_": "monai.networks.nets.SegResNet",
            "spatial_dims": 3,
            **common,
            "init_filters": network.init_filters,
            "blocks_down": list(network.blocks_down),
            "blocks_up": list(network.blocks_up),
        }
    return {
        "_target_": "monai.networks.nets.SwinUNETR",
        "spatial_dims": 3,
        **common,
        "feature_size": backbone.width,
    }


def monai_network(backbone: Backbone, head: nn.Conv3d | None, channels: int) -> nn.Module:
    """MONAI's network with the weights, in evaluation mode.

    Args:
        backbone: one that MONAI has.
        head: from features to logits; without it the last layer has one class and is random.
        channels: of the image.

    Raises:
        MedarError: see `monai_names`.
    """
    from monai.bundle import ConfigParser

    classes = 1 if head is None else head.out_channels
    network: nn.Module = ConfigParser(
        {"network": definition(backbone, channels, classes)}
    ).get_parsed_content("network")
    weights = monai_weights(backbone, head)
    missing, unexpected = network.load_state_dict(weights, strict=False)
    last = HEADS[type(backbone)]
    stray = [n for n in missing if not n.startswith(REPEATED) and not (head is None and last in n)]
    assert not [*unexpected, *stray], (unexpected, stray)
    return network.eval()


def monai_weights(backbone: Backbone, head: nn.Conv3d | None) -> dict[str, Tensor]:
    """The weights by MONAI's names, without repetitions.

    Raises:
        MedarError: see `monai_names`.
    """
    names = monai_names(backbone)
    state = dict(backbone.state_dict())
    if head is not None:
        state |= {f"head.{name}": value for name, value in head.state_dict().items()}
    return {names[name]: value.detach().cpu() for name, value in state.items()}


def _lists(values: Sequence[Sequence[int]]) -> list[list[int]]:
    return [[int(n) for n in one] for one in values]
