"""A checkpoint of MONAI's or nnU-Net's as a starting point: a folder that `--pretrained` takes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from medar.data.plan import Plan
from medar.errors import MedarError
from medar.files import file_digest
from medar.segmentation.interchange.checkpoint import read_weights
from medar.segmentation.interchange.monai import TWICE, monai_names
from medar.segmentation.interchange.nnunet import nnunet_names, turned
from medar.segmentation.segmenter import Segmenter, save_backbone
from medar.segmentation.settings import SegmentationSettings

Layout = Literal["monai", "nnunet"]
SECOND_NAMES = (TWICE, "decoder.encoder.")


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What became of the weights, by name."""

    layout: Layout
    taken: tuple[str, ...]
    """The checkpoint's that were taken over."""
    fresh: tuple[str, ...]
    """The network's that stay as they were drawn."""
    unused: tuple[str, ...]
    """The checkpoint's that the network has no place for."""


def import_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    settings: SegmentationSettings,
    plan: Plan,
    *,
    head: bool = False,
) -> Taken:
    """Write a folder that training starts from, `--pretrained`, from somebody else's weights.

    Args:
        checkpoint: of MONAI's DynUNet, SegResNet or SwinUNETR, or of nnU-Net.
        out: the folder.
        settings: its `backbone` is the checkpoint's; its seed draws what is not there.
        plan: of the volumes to come; decides channels and strides.
        head: take over the last layer too and leave a segmentation network, whose classes must be
            the plan's labels in their order.

    Raises:
        MedarError: weights of the encoder, or of the last layer if asked for, are not there or
            have another shape, naming the first.
    """
    weights = read_weights(checkpoint)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.training.seed)
        model = Segmenter(settings.backbone, plan)
    try:
        taken = take_weights(model, weights, head=head)
    except MedarError as error:
        raise MedarError(f"{checkpoint}: {error}") from error
    if head:
        model.save_pretrained(out)
    else:
        origin = {"imported": {"layout": taken.layout, "digest": file_digest(checkpoint)}}
        save_backbone(out, model.backbone, settings.backbone, plan, origin)
    return taken


def take_weights(model: Segmenter, weights: dict[str, Tensor], *, head: bool = False) -> Taken:
    """Take over a checkpoint's weights into a network.

    Args:
        model: changed in place.
        weights: by MONAI's or nnU-Net's names.
        head: see `import_checkpoint`.

    Raises:
        MedarError: see `import_checkpoint`.
    """
    layout: Layout = "nnunet" if any(n.startswith("encoder.stages.") for n in weights) else "monai"
    names = nnunet_names(model.backbone) if layout == "nnunet" else monai_names(model.backbone)
    own = {
        **dict(model.backbone.state_dict()),
        **{f"head.{name}": value for name, value in model.head.state_dict().items() if head},
    }
    needed = {
        *model.backbone.encoder_weights(),
        *(name for name in own if name.startswith("head.")),
    }
    found: dict[str, Tensor] = {}
    for name, value in own.items():
        theirs = names.get(name)
        given = weights.get(theirs) if theirs is not None else None
        if given is not None and layout == "nnunet":
            given = turned(given)
        if theirs is None or (given is None and name not in needed):
            continue
        if given is None or given.shape != value.shape:
            shape = "none" if given is None else list(given.shape)
            raise MedarError(
                f"weight {theirs!r}: {shape} given, {list(value.shape)} needed for {name!r}; take "
                "backbone settings and a plan like the checkpoint's"
            )
        found[name] = given
    with torch.no_grad():
        for name, given in found.items():
            own[name].copy_(given)
    taken = [names[name] for name in found]
    left = [n for n in weights if n not in taken and not _is_second(n)]
    fresh = [name for name in own if name not in found]
    return Taken(layout=layout, taken=tuple(taken), fresh=tuple(fresh), unused=tuple(left))


def _is_second(name: str) -> bool:
    """Whether a name is another one of a weight that has been looked at."""
    return name.startswith(SECOND_NAMES) or ".all_modules." in name
