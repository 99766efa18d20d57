"""Weights to and from MONAI's and nnU-Net's networks: export, import, reading of checkpoints."""

import io
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import safe_globals

from medar.data.plan import Plan
from medar.errors import MedarError, one_line
from medar.files import file_digest, write_bytes, write_json
from medar.model_folder import find_model
from medar.segmentation.backbones.monai import DynUNetBackbone
from medar.segmentation.interchange.monai import (
    REPEATED,
    definition,
    monai_names,
    monai_network,
)
from medar.segmentation.interchange.nnunet import (
    architecture,
    nnunet_names,
    nnunet_weights,
    turned,
)
from medar.segmentation.segmenter import Segmenter, load_backbone_and_head, save_backbone
from medar.segmentation.settings import SegmentationSettings

Part = Literal["whole", "encoder"]
Layout = Literal["monai", "nnunet"]
SECOND_NAMES = (REPEATED, "decoder.encoder.")
"""Prefixes of names under which checkpoints repeat weights."""
NESTED = ("network_weights", "state_dict", "model_state_dict", "model", "net")
"""Keys under which checkpoints keep the weights."""
PARALLEL = "module."
"""Prefix of names in a network that was trained on several GPUs."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The result of an export."""

    files: tuple[Path, ...]
    weights: int
    """Number of tensors, each counted once."""
    left_out: tuple[str, ...]
    """Weights of ours without a counterpart there."""
    filled: tuple[str, ...]
    """Weights there without a counterpart here; set to have the least effect."""


def export_weights(
    path: str | Path, out: str | Path, to: Literal["monai", "nnunet"], part: Part = "whole"
) -> Exported:
    """Write the weights of a segmentation network or a pretrained backbone for other software.

    OUT.json beside the weights describes the network: for MONAI as in a bundle's configuration, for
    nnU-Net as the section `architecture` of its plans.

    Args:
        path: the model folder, or that of the run.
        out: the file, .pt or .pth.
        to: "monai": a state_dict; "nnunet": a checkpoint for its `-pretrained_weights`.
        part: "encoder": only the encoder's weights, without filled-in ones.

    Raises:
        MedarError: another file ending, no such folder, or a backbone without a counterpart; the
            first weight is named.
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
        folder = find_model(path, "segmentation network")
        raise MedarError(f"{folder}: {error}") from error
    ours = backbone.encoder_weights() if part == "encoder" else backbone.state_dict()
    if part == "encoder":
        kept = {names[name] for name in ours if name in names}
        weights, filled = {n: w for n, w in weights.items() if n in kept}, []
    left_out = [name for name in ours if name not in names]
    _write(out, {"network_weights": weights} if to == "nnunet" else weights)
    write_json(out.with_suffix(".json"), about)
    used = [name for name, theirs in names.items() if theirs in weights and theirs not in filled]
    return Exported(
        files=(out, out.with_suffix(".json")),
        weights=len(used),
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


@dataclass(frozen=True, kw_only=True)
class Imported:
    """The result of an import, as names of weights."""

    layout: Layout
    loaded: tuple[str, ...]
    """Weights of the checkpoint that were loaded."""
    initialised: tuple[str, ...]
    """Weights of the network that keep their random initialisation."""
    unused: tuple[str, ...]
    """Weights of the checkpoint without a counterpart in the network."""


def import_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    settings: SegmentationSettings,
    plan: Plan,
    *,
    head: bool = False,
) -> Imported:
    """Write a folder for `--pretrained` from the weights of other software.

    Args:
        checkpoint: of MONAI's DynUNet, SegResNet or SwinUNETR, or of nnU-Net.
        out: the folder to write.
        settings: their `backbone` must match the checkpoint's network; the seed initialises missing
            weights.
        plan: of the training to come; determines channels and strides.
        head: import the last layer too and write a segmentation network; its classes must be the
            plan's labels in their order.

    Raises:
        MedarError: weights of the encoder, or of the last layer if requested, are missing or have
            another shape; the first is named.
    """
    weights = read_weights(checkpoint)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.training.seed)
        model = Segmenter(settings.backbone, plan)
    try:
        result = load_foreign_weights(model, weights, head=head)
    except MedarError as error:
        raise MedarError(f"{checkpoint}: {error}") from error
    if head:
        model.save_pretrained(out)
    else:
        origin = {"imported": {"layout": result.layout, "digest": file_digest(checkpoint)}}
        save_backbone(out, model.backbone, settings.backbone, plan, origin)
    return result


def load_foreign_weights(
    model: Segmenter, weights: dict[str, Tensor], *, head: bool = False
) -> Imported:
    """Load a checkpoint's weights into a network.

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
    matched: dict[str, Tensor] = {}
    for name, value in own.items():
        theirs = names.get(name)
        value_there = weights.get(theirs) if theirs is not None else None
        if value_there is not None and layout == "nnunet":
            value_there = turned(value_there)
        if theirs is None or (value_there is None and name not in needed):
            continue
        if value_there is None or value_there.shape != value.shape:
            shape = "none" if value_there is None else list(value_there.shape)
            raise MedarError(
                f"weight {theirs!r}: got {shape}, need {list(value.shape)} for {name!r}; use "
                "backbone settings and a plan that match the checkpoint"
            )
        matched[name] = value_there
    with torch.no_grad():
        for name, value_there in matched.items():
            own[name].copy_(value_there)
    loaded = [names[name] for name in matched]
    unused = [n for n in weights if n not in loaded and not _is_repeated(n)]
    initialised = [name for name in own if name not in matched]
    return Imported(
        layout=layout, loaded=tuple(loaded), initialised=tuple(initialised), unused=tuple(unused)
    )


def _is_repeated(name: str) -> bool:
    """Whether a name is a second name of another weight."""
    return name.startswith(SECOND_NAMES) or ".all_modules." in name


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Names and tensors of a checkpoint, .safetensors or of torch.save, without running its code.

    Raises:
        MedarError: it cannot be read, contains objects other than tensors and plain values, or has
            no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise MedarError(f"{path}: no such file; give a checkpoint, .pt, .pth or .safetensors")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            with _allow_numpy_scalars():
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise MedarError(
            f"{path}: not a checkpoint of tensors and plain values ({one_line(error)}); save only "
            "the state_dict"
        ) from error
    weights = _weights_in(content)
    if not weights:
        raise MedarError(
            f"{path}: no weights found; expected a state_dict, alone or under {', '.join(NESTED)}"
        )
    if all(name.startswith(PARALLEL) for name in weights):
        weights = {name.removeprefix(PARALLEL): value for name, value in weights.items()}
    return weights


def _weights_in(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, dict):
        return {}
    for name in NESTED:
        if isinstance(content.get(name), dict):
            return _weights_in(content[name])
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _allow_numpy_scalars() -> AbstractContextManager[Any]:
    """NumPy scalars are harmless; nnU-Net stores its losses as such."""
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    kinds = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.bool_)]
    return safe_globals([scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *kinds])
