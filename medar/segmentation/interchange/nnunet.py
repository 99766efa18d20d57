"""Weights of a DynUNet backbone by the names of nnU-Net's networks.

Plain blocks match nnU-Net's PlainConvUNet weight by weight. Residual blocks almost match its
ResidualEncoderUNet (arXiv 2404.09556) with one block per stage:

    ours     block 0: conv1 conv2, skip conv3           block l: conv1 conv2, skip conv3, strided
    nnU-Net  stem: conv; block 0: conv1 conv2, no skip  block l: conv1 conv2, skip pooled, conv

conv1 of our first block corresponds to the stem, conv2 to their conv2. Their conv1 of the first
block has no counterpart, nor have our first skip and skip convolutions between equal widths. The
weights fit, but the function differs. For thick slices MONAI's decoder has wider kernels than
nnU-Net's, so that only the encoder can be exchanged.

nnU-Net's arrays are (Z, Y, X), so kernels are transposed. Its convolutions have a bias, which the
following normalisation removes: it is exported as 0 and ignored on import.
"""

from typing import Any

import torch
from torch import Tensor, nn

from medar.errors import MedarError
from medar.segmentation.backbones import Backbone
from medar.segmentation.backbones.monai import DynUNetBackbone

HOME = "dynamic_network_architectures.architectures.unet"
PLAIN, RESIDUAL = f"{HOME}.PlainConvUNet", f"{HOME}.ResidualEncoderUNet"
IDENTITY = "encoder.stages.0.blocks.0.conv1"
"""The convolution of nnU-Net's first residual block without a counterpart."""


def nnunet_names(backbone: Backbone) -> dict[str, str]:
    """nnU-Net's name of each weight that has one, and of "head.weight" and "head.bias".

    Raises:
        MedarError: not a DynUNet; the first weight is named.
    """
    first = next(iter(backbone.state_dict()))
    if not isinstance(backbone, DynUNetBackbone):
        raise MedarError(f"weight {first!r}: has no counterpart in nnU-Net; only dynunet has one")
    network: Any = backbone.network
    blocks = ["input_block", *(f"downsamples.{n}" for n in range(len(network.downsamples)))]
    names: dict[str, str] = {}
    for level, block in enumerate([*blocks, "bottleneck"]):
        for part, theirs in _parts(backbone, level).items():
            names |= _pair(f"network.{block}", part, theirs)
    last = len(network.upsamples) - 1
    for number in range(last + 1):
        ours, theirs = f"network.upsamples.{number}", f"decoder.stages.{number}.convs"
        names |= {f"{ours}.transp_conv.conv.weight": f"decoder.transpconvs.{number}.weight"}
        names |= {f"{ours}.transp_conv.conv.bias": f"decoder.transpconvs.{number}.bias"}
        wide, fits = network.kernel_size[last + 1 - number], network.kernel_size[last - number]
        if tuple(wide) == tuple(fits):
            for part in (0, 1):
                names |= _pair(f"{ours}.conv_block", part + 1, f"{theirs}.{part}")
    there = {*backbone.state_dict(), "head.weight", "head.bias"}
    head = f"decoder.seg_layers.{last}"
    names |= {"head.weight": f"{head}.weight", "head.bias": f"{head}.bias"}
    return {ours: theirs for ours, theirs in names.items() if ours in there}


def _parts(backbone: DynUNetBackbone, level: int) -> dict[int, str]:
    """nnU-Net's modules for conv1, conv2 and conv3 of an encoder's block."""
    if not backbone.residual:
        return {n + 1: f"encoder.stages.{level}.0.convs.{n}" for n in (0, 1)}
    theirs = f"encoder.stages.{level}.blocks.0"
    if level == 0:
        return {1: "encoder.stem.convs.0", 2: f"{theirs}.conv2"}
    parts = {1: f"{theirs}.conv1", 2: f"{theirs}.conv2"}
    if backbone.channels[level] != backbone.channels[level - 1]:
        pooled = any(step != 1 for step in backbone.strides[level])
        parts[3] = f"{theirs}.skip.{int(pooled)}"
    return parts


def _pair(block: str, part: int, theirs: str) -> dict[str, str]:
    """A convolution and the following normalisation."""
    return {
        f"{block}.conv{part}.conv.weight": f"{theirs}.conv.weight",
        f"{block}.norm{part}.weight": f"{theirs}.norm.weight",
        f"{block}.norm{part}.bias": f"{theirs}.norm.bias",
    }


def turned(weight: Tensor) -> Tensor:
    """A kernel (..., X, Y, Z) as (..., Z, Y, X), or the reverse; other tensors unchanged."""
    return weight.transpose(2, 4).contiguous() if weight.ndim == 5 else weight


def nnunet_weights(
    backbone: Backbone, head: nn.Conv3d | None, *, encoder_alone: bool = False
) -> tuple[dict[str, Tensor], list[str]]:
    """All weights of nnU-Net's network, under all of their names.

    Args:
        backbone: a DynUNet.
        head: from features to logits; without it the last layer is 0.
        encoder_alone: do not check the decoder.

    Returns:
        The weights, and the names of those filled in: biases of 0, the convolution without a
        counterpart as identity, and last layers of 0.

    Raises:
        MedarError: see `nnunet_names`; or nnU-Net has no such decoder.
    """
    names = nnunet_names(backbone)
    assert isinstance(backbone, DynUNetBackbone)
    stray = [n for n in backbone.state_dict() if "upsamples" in n and n not in names]
    if stray and not encoder_alone:
        raise MedarError(
            f"weight {stray[0]!r}: nnU-Net's decoder has a narrower kernel there, across thick "
            "slices; export the encoder alone (--part encoder)"
        )
    state = dict(backbone.state_dict())
    classes = 1 if head is None else head.out_channels
    if head is not None:
        state |= {f"head.{name}": value for name, value in head.state_dict().items()}
    own = {names[n]: turned(value.detach().cpu()) for n, value in state.items() if n in names}
    full = {**_fillings(backbone, own, classes), **own}
    filled = [name for name in full if name not in own]
    return _under_all_names(full), filled


def _fillings(backbone: DynUNetBackbone, own: dict[str, Tensor], classes: int) -> dict[str, Tensor]:
    """Weights of nnU-Net's network without a counterpart."""
    made: dict[str, Tensor] = {}
    widths = backbone.channels
    if backbone.residual:
        kernel = own["encoder.stages.0.blocks.0.conv2.conv.weight"]
        made[f"{IDENTITY}.conv.weight"] = nn.init.dirac_(torch.empty_like(kernel))
        made[f"{IDENTITY}.norm.weight"] = torch.ones(widths[0])
        made[f"{IDENTITY}.norm.bias"] = torch.zeros(widths[0])
    for name, value in {**own, **made}.items():
        bias = f"{name.removesuffix('weight')}bias"
        # Skip convolutions have no bias there.
        if value.ndim == 5 and ".skip." not in name and bias not in own:
            outputs = value.shape[1] if ".transpconvs." in name else value.shape[0]
            made[bias] = torch.zeros(outputs)
    for number, width in enumerate(widths[-2::-1]):
        made[f"decoder.seg_layers.{number}.weight"] = torch.zeros(classes, width, 1, 1, 1)
        made[f"decoder.seg_layers.{number}.bias"] = torch.zeros(classes)
    return made


def _under_all_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """nnU-Net names a layer by name and by number, and the encoder again within the decoder."""
    named: dict[str, Tensor] = {}
    for name, value in weights.items():
        same = [name]
        for layer, number in (("conv", 0), ("norm", 1)):
            if f".{layer}." in name:
                same.append(name.replace(f".{layer}.", f".all_modules.{number}."))
        for one in same:
            named[one] = value
            if one.startswith("encoder."):
                named[f"decoder.{one}"] = value
    return named


def architecture(backbone: DynUNetBackbone) -> dict[str, Any]:
    """The section `architecture` of nnU-Net's plans for a network that takes these weights."""
    network: Any = backbone.network
    levels = len(backbone.channels)
    residual = backbone.residual
    depth = "n_blocks_per_stage" if residual else "n_conv_per_stage"
    return {
        "network_class_name": RESIDUAL if residual else PLAIN,
        "arch_kwargs": {
            "n_stages": levels,
            "features_per_stage": list(backbone.channels),
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[int(n) for n in one][::-1] for one in network.kernel_size],
            "strides": [[int(n) for n in one][::-1] for one in network.strides],
            depth: [1 if residual else 2] * levels,
            "n_conv_per_stage_decoder": [2] * (levels - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
