"""`medar export` and `medar import`: weights to and from MONAI and nnU-Net."""

from pathlib import Path
from typing import Literal

from medar.cli.output import note, print_json
from medar.cli.training import Overrides, load_config

MAX_NAMES = 3
"""Largest number of weights named in a line."""


def export(
    model: Path,
    out: Path,
    /,
    *,
    to: Literal["monai", "nnunet", "bundle"],
    part: Literal["whole", "encoder"] = "whole",
    modality: Literal["CT", "MR"] | None = None,
    json: bool = False,
) -> int:
    """Export a segmentation network or a pretrained backbone for use outside medar.

    Parameters
    ----------
    model
        The model folder, or that of the run.
    out
        File of the weights, .pt or .pth; a .json beside it describes the network. For a bundle, a
        folder.
    to
        "monai": a state_dict of MONAI's DynUNet, SegResNet or SwinUNETR. "nnunet": a checkpoint for
        nnU-Net's PlainConvUNet or ResidualEncoderUNet, from a dynunet. "bundle": a MONAI bundle.
    part
        The whole network, or only the encoder's weights; not for a bundle.
    modality
        Modality whose intensity rule a bundle uses, if the plan has several.
    json
        Print one JSON object: files, weights (their number), left_out (weights of ours without a
        counterpart), filled (weights of theirs without one).
    """
    from medar.errors import MedarError
    from medar.segmentation.interchange.bundle import export_bundle
    from medar.segmentation.interchange.weights import export_weights

    if to == "bundle":
        if part != "whole":
            raise MedarError(f"--part {part}: a bundle holds the whole network; leave it out")
        made = export_bundle(model, out, modality)
    else:
        made = export_weights(model, out, to, part)
    if json:
        print_json(vars(made))
        return 0
    print(f"{out}: {made.weights} weights")
    _note("left out, without a counterpart there", made.left_out)
    _note("filled in, without a counterpart here", made.filled)
    return 0


def import_(
    checkpoint: Path,
    out: Path,
    /,
    *overrides: Overrides,
    config: Path,
    data: Path,
    head: bool = False,
    json: bool = False,
) -> int:
    """Import a checkpoint of MONAI or nnU-Net as a folder for `--pretrained`.

    No code in the checkpoint is executed: it may contain tensors and plain values only.

    Parameters
    ----------
    checkpoint
        A .pt, .pth or .safetensors file; of MONAI's DynUNet, SegResNet or SwinUNETR, or of nnU-Net.
    out
        The folder to write.
    overrides
        Values that override the YAML, such as backbone.width=16.
    config
        YAML of the training to come; its `backbone` must match the checkpoint's network.
    data
        The prepared data set of the training to come.
    head
        Import the last layer too and write a segmentation network; its classes must be the data
        set's labels, in their order.
    json
        Print one JSON object: layout, loaded, initialised, unused (names of weights).
    """
    from medar.data.prepared import Prepared
    from medar.data.resolve import plan_for_training
    from medar.segmentation.interchange.weights import import_checkpoint
    from medar.segmentation.settings import SegmentationSettings

    settings = load_config(SegmentationSettings, config, "segmentation", overrides)
    plan = plan_for_training(Prepared(data).plan, settings.plan, data)
    made = import_checkpoint(checkpoint, out, settings, plan, head=head)
    if json:
        print_json({"out": out, **vars(made)})
        return 0
    print(f"{out}: {len(made.loaded)} weights loaded by the names of {made.layout}")
    _note("randomly initialised", made.initialised)
    _note("not used", made.unused)
    return 0


def _note(message: str, names: tuple[str, ...]) -> None:
    """Print a line that names the first of some weights, if there are any."""
    if names:
        more = (
            f" and {len(names) - MAX_NAMES} more (--json names them)"
            if len(names) > MAX_NAMES
            else ""
        )
        note(f"{message}: {', '.join(names[:MAX_NAMES])}{more}")
