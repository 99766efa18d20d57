"""Folders of segmentation networks and of pretrained backbones.

config.json         class, format, the backbone's settings; a segmenter's axes of mirrors, and the
                    spacings and intensities that it was trained on
model.safetensors   the weights, the backbone's under "backbone."
preprocess.json     the plan, all that leads from a file to the network and back
README.md           the model card

A segmenter's folder holds a backbone too: either kind can be started from.
"""

from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from medar.data.augmentation import AXES
from medar.data.plan import Plan
from medar.devices import DeviceName, to_device
from medar.errors import MedarError, one_line
from medar.model_folder import (
    CONFIG,
    WEIGHTS,
    digest_of,
    find_model,
    load_weights,
    model_card,
    read_config,
    read_preprocess,
    read_weights,
    weight_bytes,
    write_model,
)
from medar.segmentation.backbones import BACKBONES, Backbone, BackboneSettings, make_backbone
from medar.segmentation.network import Segmenter
from medar.segmentation.ranges import Ranges
from medar.settings import from_dict, to_dict

FORMAT_VERSION = 2
SEGMENTER, BACKBONE = "Segmenter", "Backbone"
"""Classes of folders, as config.json names them."""
PREFIX = "backbone."
"""How the names of the backbone's weights begin."""


def save_segmenter(folder: str | Path, model: Segmenter) -> None:
    """Write a segmentation network as a folder, file by file atomically, the configuration last."""
    about: dict[str, Any] = {"class": SEGMENTER, "mirrors": list(model.mirrors)}
    if model.ranges is not None:
        about["ranges"] = to_dict(model.ranges)
    said = f"labels: {', '.join(f'{v} {n}' for v, n in model.plan.labels.items())}"
    _save(Path(folder), model, about, model.settings, model.plan, _card(model, model.plan, said))


def save_backbone(
    folder: str | Path,
    backbone: Backbone,
    settings: BackboneSettings,
    plan: Plan,
    about: dict[str, Any],
) -> None:
    """Write a pretrained backbone as a folder that `load_pretrained` takes.

    Args:
        folder: where to.
        backbone: made by `make_backbone(settings, plan)`.
        settings: its own.
        plan: of the volumes that it saw.
        about: what else config.json says, such as how it was pretrained.
    """
    state = {f"{PREFIX}{name}": value for name, value in backbone.state_dict().items()}
    said = f"pretrained: {about}"
    card = _card(backbone, plan, said, kind="backbone")
    _save(Path(folder), state, {"class": BACKBONE, **about}, settings, plan, card)


def load_segmenter(path: str | Path, device: DeviceName = "auto") -> Segmenter:
    """The network that `save_segmenter` wrote, on a device, in evaluation mode.

    Args:
        path: its folder, or the run's.
        device: "auto" is CUDA where there is one.

    Raises:
        MedarError: a file is absent or damaged, or says that it is something else; or there is no
            such device.
    """
    folder = find_model(path)
    values = _config(folder, (SEGMENTER,))
    where = str(folder / CONFIG)
    settings = _backbone_settings(folder, values)
    seen = values.get("ranges")  # folders of before 0.2 have none
    ranges = None if seen is None else from_dict(Ranges, seen, f"{where}: ranges")
    mirrors = values.get("mirrors", [])
    if not isinstance(mirrors, list) or any(axis not in AXES for axis in mirrors):
        raise MedarError(f"{where}: mirrors {mirrors!r}: a list of x, y and z is needed")
    model = Segmenter(settings, _plan(folder), mirrors, ranges)
    load_weights(model, folder)
    return to_device(model, device).eval()


def load_parts(path: str | Path) -> tuple[Backbone, nn.Conv3d | None, Plan]:
    """Backbone, head and plan of either kind of folder, on the CPU; a backbone's has no head.

    Raises:
        MedarError: see `load_segmenter`.
    """
    folder = find_model(path)
    values = _config(folder, (SEGMENTER, BACKBONE))
    if values["class"] == SEGMENTER:
        model = load_segmenter(folder, "cpu")
        return model.backbone, model.head, model.plan
    plan, settings = _plan(folder), _backbone_settings(folder, values)
    backbone = make_backbone(settings, plan)
    load_weights(backbone, folder, prefix=PREFIX)
    return backbone.eval(), None, plan


def load_pretrained(
    model: Segmenter, path: str | Path, part: Literal["backbone", "encoder"] = "backbone"
) -> str:
    """Take over a backbone, or its encoder alone, from a segmenter or from pretraining.

    Args:
        model: to start from it.
        path: a folder that `save_segmenter` or `save_backbone` wrote, or that of its run.
        part: what to take.

    Returns:
        A hash of the weights that were read.

    Raises:
        MedarError: no such folder, or a backbone of other settings, channels or strides, naming
            the first difference.
    """
    folder = find_model(path)
    values = _config(folder, (SEGMENTER, BACKBONE))
    there = _backbone_settings(folder, values)
    _check_alike(folder, there, _plan(folder), model)
    every = read_weights(folder).items()
    weights = {n.removeprefix(PREFIX): w for n, w in every if n.startswith(PREFIX)}
    try:
        if part == "encoder":
            model.backbone.load_encoder(weights)
        else:
            model.backbone.load_state_dict(weights)
    except (RuntimeError, MedarError) as error:
        raise MedarError(
            f"{folder / WEIGHTS}: not the weights of this backbone ({one_line(error)})"
        ) from error
    return digest_of(weight_bytes(weights))


def model_digest(model: Segmenter) -> str:
    """A hash of a network's settings, plan and weights."""
    about = f"{to_dict(model.settings)} {model.plan.digest}"
    return digest_of(weight_bytes(model.state_dict(), about))


def _save(
    folder: Path,
    module: Segmenter | dict[str, Tensor],
    about: dict[str, Any],
    settings: BackboneSettings,
    plan: Plan,
    card: str,
) -> None:
    state = module if isinstance(module, dict) else module.state_dict()
    config = {**about, "backbone": to_dict(settings)}
    if path := BACKBONES.import_path(settings.kind):
        config["backbone_class"] = path
    write_model(
        folder,
        config=config,
        version=FORMAT_VERSION,
        weights=weight_bytes(state),
        card=card,
        preprocess=plan,
    )


def _config(folder: Path, classes: tuple[str, ...]) -> dict[str, Any]:
    values = read_config(folder, classes, FORMAT_VERSION, "segmentation model")
    if "backbone" not in values:
        raise MedarError(f"{folder / CONFIG}: key 'backbone' is missing")
    return values


def _backbone_settings(folder: Path, values: dict[str, Any]) -> BackboneSettings:
    backbone = values["backbone"]
    if isinstance(backbone, dict):
        BACKBONES.load_external(str(backbone.get("kind")), values.get("backbone_class"))
    return from_dict(BackboneSettings, backbone, f"{folder / CONFIG}: backbone")


def _plan(folder: Path) -> Plan:
    return read_preprocess(folder, Plan)


def _check_alike(folder: Path, there: BackboneSettings, plan: Plan, model: Segmenter) -> None:
    """Refuse a backbone that is built otherwise."""
    given, own = to_dict(there), to_dict(model.settings)
    pairs: dict[str, tuple[Any, Any]] = {
        **{f"backbone.{name}": (given[name], own[name]) for name in own},
        "channels": (list(plan.channels), list(model.plan.channels)),
    }
    if given == own:
        # Strides follow from the plan: another size or spacing may give the same.
        pairs["strides"] = (make_backbone(there, plan).strides, model.backbone.strides)
    for name, (before, now) in pairs.items():
        if before != now:
            raise MedarError(
                f"{folder}: was made with {name} {before}, here it is {now}; take the same, or "
                "another folder to start from"
            )


def _card(
    module: Segmenter | Backbone, plan: Plan, said: str, kind: str = "segmentation network"
) -> str:
    size, spacing = " x ".join(map(str, plan.size)), " x ".join(f"{s:g}" for s in plan.spacing)
    lines = [
        said,
        f"windows: {size} voxels, spacing {spacing} mm",
        f"parameters: {sum(p.numel() for p in module.parameters()):,}",
    ]
    return model_card(kind, lines)
