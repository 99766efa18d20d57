"""The configurations of a MONAI bundle: metadata (inputs and outputs) and inference."""

from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from medar.data.plan import IntensityRule, Plan
from medar.errors import MedarError
from medar.segmentation.backbones import Backbone
from medar.segmentation.interchange.monai import definition
from medar.segmentation.segmenter import Segmenter
from medar.version import __version__

SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20220324.json"
)
LABELS = [["L", "R"], ["P", "A"], ["I", "S"]]
OVERLAP = 0.5


def chosen_rules(plan: Plan, modality: str | None) -> tuple[IntensityRule, ...]:
    """The intensity rule of each channel.

    Raises:
        MedarError: there are several to choose from, or none.
    """
    if modality is None and not plan.channels and len(plan.intensity) == 1:
        return tuple(plan.intensity.values())
    if modality is None and not plan.channels:
        raise MedarError(
            f"the plan has intensity rules for {', '.join(plan.intensity)}; a bundle has one: "
            "choose it with --modality"
        )
    return plan.rules(len(plan.channels) or 1, modality)


def window_of(backbone: Backbone, plan: Plan) -> list[int]:
    """The plan's size, rounded up to what MONAI's network can halve."""
    return [-(-n // m) * m for n, m in zip(plan.size, backbone.multiple, strict=True)]


def inference(model: Segmenter, rules: tuple[IntensityRule, ...]) -> dict[str, Any]:
    """The content of configs/inference.json."""
    plan, classes = model.plan, len(model.plan.labels) + 1
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
        "postprocessing": {"_target_": "Compose", "transforms": postprocessing(plan)},
        "load": (
            "$@network.load_state_dict("
            "torch.load(@bundle_root + '/models/model.pt', map_location='cpu', weights_only=True))"
        ),
        # Probabilities are blended, not logits, as in medar.
        "probabilities": "$lambda part: @network(part).softmax(1)",
        "predict": (
            "$torch.no_grad()(lambda case: {**case, 'pred': "
            "@inferer(case['image'][None].to(@device), @probabilities)[0].cpu()})"
        ),
        "run": [
            "$@load",
            "$@network.eval()",
            "$list(map(@postprocessing, map(@predict, @dataset)))",
        ],
    }


def preprocessing(plan: Plan, rules: tuple[IntensityRule, ...]) -> list[dict[str, Any]]:
    """MONAI's transforms that approximate the plan."""
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


def postprocessing(plan: Plan) -> list[dict[str, Any]]:
    """From probabilities to a label map on the file's grid."""
    return [
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
            "orig_labels": list(range(len(plan.labels) + 1)),
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
    ]


def _scaling(rules: tuple[IntensityRule, ...]) -> dict[str, Any]:
    """To [-1, 1] by one rule.

    Raises:
        MedarError: the channels have different rules.
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
