"""A segmentation network as a MONAI bundle, which runs where medar is not installed.

configs/metadata.json    what goes in and comes out, as `verify_net_in_out` reads it
configs/inference.json   MONAI's network, transforms and sliding window
models/model.pt          the weights by MONAI's names
docs/README.md           what it is, and where it differs from `medar segment`
docs/license.txt         a place for the terms

The network's logits are medar's. Preparation is MONAI's transforms, which come near to the plan's.
"""

import io
from pathlib import Path

import torch

from medar.errors import MedarError
from medar.files import write_bytes, write_json
from medar.model_folder import find_model
from medar.segmentation.interchange.configs import (
    chosen_rules,
    inference,
    metadata,
    window_of,
)
from medar.segmentation.interchange.exporting import Exported
from medar.segmentation.interchange.monai import monai_names, monai_network
from medar.segmentation.segmenter import Segmenter

LICENCE = "To be stated by whoever trained the network and may pass it on.\n"


def export_bundle(path: str | Path, out: str | Path, modality: str | None = None) -> Exported:
    """Write a bundle.

    Args:
        path: the folder of a segmentation network, or the run's.
        out: the bundle's folder.
        modality: whose intensity rule is taken, where the plan has several.

    Raises:
        MedarError: no such network, a backbone that MONAI does not have, several rules and no
            modality, or a folder that holds other files.
    """
    out = Path(out)
    own = (out / "configs" / "metadata.json").is_file()
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not own):
        raise MedarError(f"{out}: holds something else; name a new folder for the bundle")
    model = Segmenter.from_pretrained(path, "cpu")
    rules = chosen_rules(model.plan, modality)
    channels = len(model.plan.channels) or 1
    try:
        network = monai_network(model.backbone, model.head, channels)
    except MedarError as error:
        raise MedarError(f"{find_model(path)}: {error}") from error
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
        "Not a medical device: for research only. Data, licence and limits are to be stated by\n"
        "whoever trained it.\n\n"
        f"Labels: {labels}.\n\n"
        "Volumes, .nii or .nii.gz, in `input`; label maps come out in `eval`:\n\n"
        "    python -m monai.bundle run --config_file configs/inference.json\n\n"
        "## Where it differs from `medar segment`\n\n"
        "The network gives the same logits. Around it MONAI's transforms come near to medar's:\n\n"
        + "".join(f"- {one}\n" for one in differences(model))
    )


def differences(model: Segmenter) -> list[str]:
    """What a bundle does otherwise, in sentences."""
    plan = model.plan
    said = [
        "Volumes of another spacing are resampled without blurring before they are made coarser, "
        "and their grids may differ by a voxel; volumes that have the spacing already are alike.",
        "Chances, not labels, are brought back to the file's grid, by linear interpolation.",
        "Nothing is said about volumes unlike those of training; files are read as MONAI reads "
        "them, without medar's checks of geometry.",
    ]
    if any(rule.kind == "percentiles" for rule in plan.intensity.values()):
        said.append("Percentiles are taken over all voxels; medar leaves the smallest value out.")
    if plan.interpolation != "linear":
        said.append(f"Interpolation is linear; the plan has {plan.interpolation}.")
    if plan.mode == "volume":
        said.append("What is cropped or padded by an odd number of voxels may lie a voxel aside.")
    if plan.mode == "volume" and plan.centre == "foreground":
        said.append(
            "The image's centre is kept when it is cropped; the plan keeps the foreground's."
        )
    window = window_of(model.backbone, plan)
    if window != list(plan.size):
        said.append(
            f"Windows are {window} voxels, which the network can halve; medar takes "
            f"{list(plan.size)} and fills them up."
        )
    if model.mirrors:
        said.append(
            f"No mean over mirrors is taken; medar mirrors along {', '.join(model.mirrors)}."
        )
    return said
