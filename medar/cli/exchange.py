"""`medar export` and `medar import`: weights to and from MONAI and nnU-Net."""

from pathlib import Path
from typing import Literal

from medar.cli.output import note, print_json
from medar.cli.training import Overrides, load_config

SHOWN = 3
"""Names of weights that a line has at most."""


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
    """Write a segmentation network or a pretrained backbone for use outside medar.

    Parameters
    ----------
    model
        The folder, or the run that left it.
    out
        The weights, .pt or .pth, with a .json beside them that says what network takes them; for a
        bundle a folder.
    to
        "monai": a state_dict of MONAI's DynUNet, SegResNet or SwinUNETR. "nnunet": a checkpoint for
        nnU-Net's PlainConvUNet or ResidualEncoderUNet, of a dynunet. "bundle": a MONAI bundle.
    part
        The whole network, or the encoder's weights alone; not for a bundle.
    modality
        Whose intensities a bundle normalises, where the plan has rules for several.
    json
        Print one JSON object: files, weights (how many), left_out (ours without a counterpart),
        filled (theirs without one).
    """
    from medar.errors import MedarError
    from medar.segmentation.interchange.bundle import export_bundle
    from medar.segmentation.interchange.exporting import export_weights

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
    _say("left out, no counterpart there", made.left_out)
    _say("filled in, no counterpart here", made.filled)
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
    """Turn a checkpoint of MONAI's or nnU-Net's into a folder that `--pretrained` takes.

    Nothing in the checkpoint is run: it may hold tensors and plain values alone.

    Parameters
    ----------
    checkpoint
        .pt, .pth or .safetensors; of MONAI's DynUNet, SegResNet or SwinUNETR, or of nnU-Net.
    out
        The folder.
    overrides
        Values that replace the YAML's, such as backbone.width=16.
    config
        YAML of the training to come; its `backbone` must be built like the checkpoint's network.
    data
        The prepared data set of the training to come.
    head
        Take over the last layer too and leave a segmentation network; its classes must be the
        data set's labels, in their order.
    json
        Print one JSON object: layout, taken, fresh, unused (names of weights).
    """
    from medar.data.prepared import Prepared
    from medar.data.resolve import plan_for_training
    from medar.segmentation.interchange.starting import import_checkpoint
    from medar.segmentation.settings import SegmentationSettings

    settings = load_config(SegmentationSettings, config, "segmentation", overrides)
    plan = plan_for_training(Prepared(data).plan, settings.plan, data)
    made = import_checkpoint(checkpoint, out, settings, plan, head=head)
    if json:
        print_json({"out": out, **vars(made)})
        return 0
    print(f"{out}: {len(made.taken)} weights taken over by the names of {made.layout}")
    _say("left as they were drawn", made.fresh)
    _say("not used", made.unused)
    return 0


def _say(said: str, names: tuple[str, ...]) -> None:
    """A line on the first of some weights, if there are any."""
    if names:
        more = f" and {len(names) - SHOWN} more (--json names them)" if len(names) > SHOWN else ""
        note(f"{said}: {', '.join(names[:SHOWN])}{more}")
