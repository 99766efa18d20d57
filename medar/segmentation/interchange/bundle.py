"""A segmentation network as a MONAI bundle, which runs where medar is not installed.

configs/metadata.json    what goes in and comes out, as `verify_net_in_out` reads it
configs/inference.json   MONAI's network, transforms and sliding window
models/model.pt          the weights by MONAI's names
docs/README.md           what it is, and where it differs from `medar segment`
docs/license.txt         a place for the terms

The network's logits are medar's. Preparation is MONAI's transforms, which come near to the plan's.
"""

import io
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from medar import __version__
from medar.data.intensity import IntensityRule
from medar.data.plan import Plan
from medar.errors import MedarError
from medar.files import write_bytes, write_json
from medar.segmentation.backbones import Backbone
from medar.segmentation.folder import load_segmenter, model_folder
from medar.segmentation.interchange.exporting import Exported
from medar.segmentation.interchange.monai import definition, monai_names, monai_network
from medar.segmentation.network import Segmenter

SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20220324.json"
)
LABELS = [["L", "R"], ["P", "A"], ["I", "S"]]
OVERLAP = 0.5
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
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / "configs").is_dir()):
        raise MedarError(f"{out}: holds something else; name a new folder for the bundle")
    model = load_segmenter(path, "cpu")
    rules = chosen_rules(model.plan, modality)
    channels = len(model.plan.channels) or 1
    try:
        network = monai_network(model.backbone, model.head, channels)
    except MedarError as error:
        raise MedarError(f"{model_folder(path)}: {error}") from error
    packed = io.BytesIO()
    torch.save(network.state_dict(), packed)
    files = {
        "models/model.pt": packed.getvalue(),
        "docs/README.md": _readme(model).encode(),
        "docs/license.txt": LICENCE.encode(),
    }
    for name, content in files.items():
        write_bytes(out / name, content)
    write_json(out / "configs" / "inference.json", inference(model, rules))
    write_json(out / "configs" / "metadata.json", metadata(model, modality))
    written = (*files, "configs/inference.json", "configs/metadata.json")
    return Exported(
        files=tuple(out / name for name in written),
        weights=len(monai_names(model.backbone)),
        left_out=(),
        filled=(),
    )


def chosen_rules(plan: Plan, modality: str | None) -> tuple[IntensityRule, ...]:
    """The intensity rule of each channel.

    Raises:
        MedarError: several to choose from, or none.
    """
    if modality is None and not plan.channels and len(plan.intensity) == 1:
        return tuple(plan.intensity.values())
    if modality is None and not plan.channels:
        raise MedarError(
            f"the plan has intensity rules for {', '.join(plan.intensity)}; a bundle has one: name "
            "it (--modality)"
        )
    return plan.rules(len(plan.channels) or 1, modality)


def window_of(backbone: Backbone, plan: Plan) -> list[int]:
    """The plan's size, filled up to what MONAI's network can halve."""
    return [-(-n // m) * m for n, m in zip(plan.size, backbone.multiple, strict=True)]


def inference(model: Segmenter, rules: tuple[IntensityRule, ...]) -> dict[str, Any]:
    """The content of configs/inference.json."""
    plan, classes = model.plan, len(model.plan.labels) + 1
    names = list(range(classes))
    return {
        "imports": ["$import glob", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/input'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": definition(model.backbone, len(rules), classes),
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": preprocessing(plan, rules)},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': one} for one in sorted(glob.glob(@dataset_dir + '/*.nii*'))]",
            "transform": "@preprocessing",
        },
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": window_of(model.backbone, plan),
            "sw_batch_size": 1,
            "overlap": OVERLAP,
            "mode": "gaussian",
            "cval": -1.0,
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": False,
                },
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                {
                    "_target_": "MapLabelValued",
                    "keys": "pred",
                    "orig_labels": names,
                    "target_labels": [0, *plan.labels],
                },
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": "labels",
                    "output_dtype": "$torch.int16",
                    "separate_folder": False,
                    "resample": False,
                },
            ],
        },
        "load": (
            "$@network.load_state_dict("
            "torch.load(@bundle_root + '/models/model.pt', map_location='cpu', weights_only=True))"
        ),
        # Chances are blended, not logits, as medar does.
        "chances": "$lambda part: @network(part).softmax(1)",
        "predict": (
            "$torch.no_grad()(lambda case: {**case, 'pred': "
            "@inferer(case['image'][None].to(@device), @chances)[0].cpu()})"
        ),
        "run": [
            "$@load",
            "$@network.eval()",
            "$list(map(@postprocessing, map(@predict, @dataset)))",
        ],
    }


def preprocessing(plan: Plan, rules: tuple[IntensityRule, ...]) -> list[dict[str, Any]]:
    """MONAI's transforms that come nearest to the plan."""
    channel = "no_channel" if len(rules) == 1 else -1
    steps: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image", "channel_dim": channel},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": LABELS},
        _scaling(rules),
        {
            "_target_": "Spacingd",
            "keys": "image",
            "pixdim": list(plan.spacing),
            "mode": "bilinear",
            "padding_mode": "border",
        },
    ]
    if plan.mode == "volume":
        steps.append(
            {
                "_target_": "ResizeWithPadOrCropd",
                "keys": "image",
                "spatial_size": list(plan.size),
                "value": -1.0,
            }
        )
    return steps


def _scaling(rules: tuple[IntensityRule, ...]) -> dict[str, Any]:
    """To [-1, 1] by one rule.

    Raises:
        MedarError: channels with different rules.
    """
    if len(set(rules)) > 1:
        raise MedarError(
            "the plan's channels have different intensity rules, for which MONAI has no transform"
        )
    rule = rules[0]
    span = {"keys": "image", "b_min": -1.0, "b_max": 1.0, "clip": True}
    if rule.kind == "window":
        return {"_target_": "ScaleIntensityRanged", "a_min": rule.low, "a_max": rule.high, **span}
    return {
        "_target_": "ScaleIntensityRangePercentilesd",
        "lower": rule.low,
        "upper": rule.high,
        "channel_wise": True,
        **span,
    }


def metadata(model: Segmenter, modality: str | None) -> dict[str, Any]:
    """The content of configs/metadata.json."""
    plan = model.plan
    shape = window_of(model.backbone, plan)
    rules = list(plan.intensity)
    kind = modality or (rules[0] if len(rules) == 1 else "other")
    names = plan.channels or ("image",)
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported by medar {__version__}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch"),
        "numpy_version": version("numpy"),
        "required_packages_version": {"nibabel": version("nibabel")},
        "name": "medar segmentation",
        "task": "Segmentation of 3D medical volumes",
        "description": f"Labels: {', '.join(plan.labels.values())}.",
        "authors": "to be stated",
        "copyright": f"to be stated, {datetime.now(UTC).year}",
        "intended_use": "For research only. Not a medical device.",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "hounsfield" if kind == "CT" else "magnitude",
                    "modality": kind,
                    "num_channels": len(names),
                    "spatial_shape": shape,
                    "dtype": "float32",
                    "value_range": [-1, 1],
                    "is_patch_data": plan.mode == "patch",
                    "channel_def": {str(n): name for n, name in enumerate(names)},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": len(plan.labels) + 1,
                    "spatial_shape": shape,
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": plan.mode == "patch",
                    "channel_def": {
                        str(n): name for n, name in enumerate(["background", *plan.labels.values()])
                    },
                }
            },
        },
    }


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
