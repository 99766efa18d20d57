"""Export of a segmentation network as a MONAI bundle, which runs without medar.

configs/metadata.json    inputs and outputs, as checked by `verify_net_in_out`
configs/inference.json   MONAI's network, transforms and sliding window
models/model.pt          the weights by MONAI's names
docs/README.md           description, and differences from `medar segment`
docs/license.txt         to be completed

The logits equal medar's. Preparation uses MONAI's transforms, which approximate the plan's.
"""

import io
from pathlib import Path

import torch

from medar.errors import MedarError
from medar.files import write_bytes, write_json
from medar.model_folder import find_model
from medar.segmentation.interchange.bundle_configs import (
    chosen_rules,
    inference,
    metadata,
    window_of,
)
from medar.segmentation.interchange.monai import monai_names, monai_network
from medar.segmentation.interchange.weights import Exported
from medar.segmentation.segmenter import Segmenter

LICENCE = "To be stated by the author of the network.\n"


def export_bundle(path: str | Path, out: str | Path, modality: str | None = None) -> Exported:
    """Write a bundle.

    Args:
        path: folder of a segmentation network, or of its run.
        out: the bundle's folder.
        modality: selects the intensity rule, if the plan has several.

    Raises:
        MedarError: no such network, MONAI has no such backbone, several rules and no modality, or
            the folder contains other files.
    """
    out = Path(out)
    own = (out / "configs" / "metadata.json").is_file()
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not own):
        raise MedarError(f"{out}: contains other files; name a new folder for the bundle")
    model = Segmenter.from_pretrained(path, "cpu")
    rules = chosen_rules(model.plan, modality)
    channels = len(model.plan.channels) or 1
    try:
        network = monai_network(model.backbone, model.head, channels)
    except MedarError as error:
        folder = find_model(path, "segmentation network")
        raise MedarError(f"{folder}: {error}") from error
    configs = {"inference": inference(model, rules), "metadata": metadata(model, modality)}
    packed = io.BytesIO()
    torch.save(network.state_dict(), packed)
    files = {
        "models/model.pt": packed.getvalue(),
        "docs/README.md": _readme(model).encode(),
        "docs/license.txt": LICENCE.encode(),
    }
    for name, content in files.items():
        write_bytes(out / name, content)
    for name, values in configs.items():
        write_json(out / "configs" / f"{name}.json", values)
    written = (*files, *(f"configs/{name}.json" for name in configs))
    return Exported(
        files=tuple(out / name for name in written),
        weights=len(monai_names(model.backbone)),
        left_out=(),
        filled=(),
    )


def _readme(model: Segmenter) -> str:
    """The content of docs/README.md."""
    labels = ", ".join(f"{value} {name}" for value, name in model.plan.labels.items())
    return (
        "# A segmentation network trained with medar\n\n"
        "Not a medical device: for research only. Data, licence and limitations are to be stated\n"
        "by its author.\n\n"
        f"Labels: {labels}.\n\n"
        "Put volumes, .nii or .nii.gz, into `input`; label maps are written to `eval`:\n\n"
        "    python -m monai.bundle run --config_file configs/inference.json\n\n"
        "## Differences from `medar segment`\n\n"
        "The network gives the same logits. MONAI's transforms approximate medar's:\n\n"
        + "".join(f"- {one}\n" for one in differences(model))
    )


def differences(model: Segmenter) -> list[str]:
    """Differences between a bundle and `medar segment`, as sentences."""
    plan = model.plan
    found = [
        "Volumes with another spacing are downsampled without blurring, and their grids may differ "
        "by a voxel; there is no difference for volumes with the plan's spacing.",
        "Probabilities instead of labels are resampled to the file's grid, linearly.",
        "There is no warning about volumes unlike those of training; files are read by MONAI, "
        "without medar's checks of geometry.",
    ]
    if any(rule.kind == "percentiles" for rule in plan.intensity.values()):
        found.append("Percentiles are taken over all voxels; medar excludes the smallest value.")
    if plan.interpolation != "linear":
        found.append(f"Interpolation is linear; the plan has {plan.interpolation}.")
    if plan.mode == "volume":
        found.append("Crops and paddings by an odd number of voxels may be shifted by a voxel.")
    if plan.mode == "volume" and plan.centre == "foreground":
        found.append("Crops are centred on the image; the plan centres them on the foreground.")
    window = window_of(model.backbone, plan)
    if window != list(plan.size):
        found.append(
            f"Windows are {window} voxels, which the network can halve; medar pads windows of "
            f"{list(plan.size)} voxels."
        )
    if model.mirrors:
        found.append(
            f"Mirror images are not averaged; medar averages over {', '.join(model.mirrors)}."
        )
    return found
