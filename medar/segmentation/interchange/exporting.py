"""Weights of a folder for MONAI's and nnU-Net's networks, as torch.save writes them."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from medar.errors import MedarError
from medar.files import write_bytes, write_json
from medar.model_folder import find_model
from medar.segmentation.backbones.monai import DynUNetBackbone
from medar.segmentation.interchange.monai import definition, monai_names, monai_network
from medar.segmentation.interchange.nnunet import architecture, nnunet_names, nnunet_weights
from medar.segmentation.segmenter import load_backbone_and_head

Part = Literal["whole", "encoder"]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    files: tuple[Path, ...]
    weights: int
    """How many tensors, each under one name."""
    left_out: tuple[str, ...]
    """Weights of ours that have no counterpart there."""
    filled: tuple[str, ...]
    """Weights there that ours has no counterpart for; set so that they do least."""


def export_weights(
    path: str | Path, out: str | Path, to: Literal["monai", "nnunet"], part: Part = "whole"
) -> Exported:
    """Write the weights of a segmentation network or a pretrained backbone by others' names.

    OUT.json beside the weights says what network takes them: MONAI's as a bundle's configuration
    names it, nnU-Net's as the section `architecture` of its plans.

    Args:
        path: the folder, or the run's.
        out: the file, .pt or .pth.
        to: MONAI's: a state_dict. nnU-Net's: a checkpoint that its `-pretrained_weights` takes.
        part: "encoder": the encoder's weights alone, without what would be filled in.

    Raises:
        MedarError: another ending, no such folder, or a backbone without a counterpart, naming the
            first weight.
    """
    out = Path(out)
    if out.suffix not in (".pt", ".pth"):
        raise MedarError(f"{out}: weights are written as .pt or .pth")
    backbone, head, plan = load_backbone_and_head(path)
    filled: list[str] = []
    try:
        if to == "monai":
            names, channels = monai_names(backbone), len(plan.channels) or 1
            weights = dict(monai_network(backbone, head, channels).state_dict())
            if head is None:
                weights = {n: w for n, w in weights.items() if n not in _head(names)}
            about = definition(backbone, channels, 1 if head is None else head.out_channels)
        else:
            names = nnunet_names(backbone)
            assert isinstance(backbone, DynUNetBackbone)
            alone = part == "encoder"
            weights, filled = nnunet_weights(backbone, head, encoder_alone=alone)
            about = {"architecture": architecture(backbone)}
    except MedarError as error:
        raise MedarError(f"{find_model(path)}: {error}") from error
    ours = backbone.encoder_weights() if part == "encoder" else backbone.state_dict()
    if part == "encoder":
        kept = {names[name] for name in ours if name in names}
        weights, filled = {n: w for n, w in weights.items() if n in kept}, []
    left_out = [name for name in ours if name not in names]
    _write(out, {"network_weights": weights} if to == "nnunet" else weights)
    write_json(out.with_suffix(".json"), about)
    taken = [name for name, theirs in names.items() if theirs in weights and theirs not in filled]
    return Exported(
        files=(out, out.with_suffix(".json")),
        weights=len(taken),
        left_out=tuple(left_out),
        filled=tuple(filled),
    )


def _head(names: dict[str, str]) -> set[str]:
    return {names["head.weight"], names["head.bias"]}


def _write(out: Path, content: dict[str, Any] | dict[str, Tensor]) -> None:
    packed = io.BytesIO()
    torch.save(content, packed)
    try:
        write_bytes(out, packed.getvalue())
    except OSError as error:
        raise MedarError(f"{out}: cannot be written ({error.strerror})") from error
