"""`Segmenter`: a backbone and a head, from volumes to logits, and its model folder.

    volume -> backbone -> W features per voxel -> 1x1x1 convolution -> logits

`config.json` holds the backbone's settings, the mirrored axes, and the spacings and intensities of
the training volumes; the names of the backbone's weights begin with "backbone.". Pretraining
writes folders of class "Backbone", without a head; training can start from either.

B batch, C channels, X Y Z voxels, W features per voxel, K labels (without the background).
"""

from collections.abc import Sequence
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
from medar.segmentation.training_range import TrainingRange
from medar.settings import from_dict, to_dict

FORMAT_VERSION = 2
SEGMENTER, BACKBONE = "Segmenter", "Backbone"
"""Values of "class" in config.json."""
PREFIX = "backbone."


class Segmenter(nn.Module):
    """A segmentation network for the volumes of a plan.

    Args:
        settings: of the backbone.
        plan: labels, and the preprocessing from a file to the network and back.
        mirrors: axes along which training mirrored the volumes; by default prediction averages over
            the mirror images.
        training_range: spacings and intensities of the training volumes, if known.

    Raises:
        MedarError: the plan has no labels, or the backbone does not support it.
    """

    def __init__(
        self,
        settings: BackboneSettings,
        plan: Plan,
        mirrors: Sequence[str] = (),
        training_range: TrainingRange | None = None,
    ) -> None:
        super().__init__()
        self.loaded_from: tuple[str, str] | None = None
        if not plan.labels:
            raise MedarError("the plan names no labels; segmentation needs labelled cases")
        self.settings, self.plan, self.mirrors = settings, plan, tuple(mirrors)
        self.training_range = training_range
        self.backbone = make_backbone(settings, plan)
        self.head = nn.Conv3d(self.backbone.width, len(plan.labels) + 1, kernel_size=1)

    def forward(self, volumes: Tensor) -> Tensor:
        """(B, C, X, Y, Z) in [-1, 1] to logits (B, K + 1, X, Y, Z), background first."""
        logits: Tensor = self.head(self.backbone(volumes))
        return logits

    @property
    def digest(self) -> str:
        """A hash of settings, plan and weights."""
        about = f"{to_dict(self.settings)} {self.plan.digest}"
        return digest_of(weight_bytes(self.state_dict(), about))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the network as a model folder that `from_pretrained` reads."""
        config: dict[str, Any] = {"class": SEGMENTER, "mirrors": list(self.mirrors)}
        if self.training_range is not None:
            config["training_range"] = to_dict(self.training_range)
        labels = f"labels: {', '.join(f'{v} {n}' for v, n in self.plan.labels.items())}"
        card = _card(self, self.plan, labels, "segmentation network")
        _write(folder, config, self.settings, self.state_dict(), self.plan, card)

    @classmethod
    def from_pretrained(cls, path: str | Path, device: DeviceName = "auto") -> "Segmenter":
        """Load a network that `save_pretrained` or training wrote, in evaluation mode.

        Args:
            path: the model folder, or that of its training run; or a name (`find_model`).
            device: of the network; "auto" is CUDA if available.

        Raises:
            MedarError: a file is absent or damaged, the folder holds another class or format, its
                backbone's class cannot be imported, or CUDA is not available.
        """
        folder = find_model(path, "segmentation network")
        values, settings = _read(folder, (SEGMENTER,))
        where, training_range = str(folder / CONFIG), values.get("training_range")
        if training_range is not None:
            training_range = from_dict(TrainingRange, training_range, f"{where}: training_range")
        mirrors = values.get("mirrors", [])
        if not isinstance(mirrors, list) or any(axis not in AXES for axis in mirrors):
            raise MedarError(f"{where}: mirrors must be a list of x, y and z, got {mirrors!r}")
        model = cls(settings, read_preprocess(folder, Plan), mirrors, training_range)
        load_weights(model, folder)
        model.loaded_from = str(path), device
        return to_device(model, device).eval()

    def load_backbone(
        self, path: str | Path, part: Literal["backbone", "encoder"] = "backbone"
    ) -> str:
        """Load the backbone of a pretrained model, or only its encoder.

        Args:
            path: folder of a segmentation network or a pretrained backbone, or of its run.
            part: the weights to load.

        Returns:
            A hash of the weights that were read.

        Raises:
            MedarError: there is no such folder, or its backbone has other settings, channels or
                strides; the first difference is named.
        """
        folder = find_model(path, "segmentation network")
        _, settings = _read(folder, (SEGMENTER, BACKBONE))
        self._check_same_backbone(folder, settings, read_preprocess(folder, Plan))
        items = read_weights(folder).items()
        weights = {n.removeprefix(PREFIX): w for n, w in items if n.startswith(PREFIX)}
        try:
            if part == "encoder":
                self.backbone.load_encoder(weights)
            else:
                self.backbone.load_state_dict(weights)
        except (RuntimeError, MedarError) as error:
            raise MedarError(
                f"{folder / WEIGHTS}: not the weights of this backbone ({one_line(error)})"
            ) from error
        return digest_of(weight_bytes(weights))

    def _check_same_backbone(self, folder: Path, settings: BackboneSettings, plan: Plan) -> None:
        theirs, own = to_dict(settings), to_dict(self.settings)
        pairs: dict[str, tuple[Any, Any]] = {
            **{f"backbone.{name}": (theirs[name], own[name]) for name in own},
            "channels": (list(plan.channels), list(self.plan.channels)),
        }
        if theirs == own:
            # Strides follow from the plan: another size or spacing may lead to the same ones.
            pairs["strides"] = make_backbone(settings, plan).strides, self.backbone.strides
        for name, (saved, current) in pairs.items():
            if saved != current:
                raise MedarError(
                    f"{folder}: has {name} {saved}, this network has {current}; use the same "
                    "settings, or start from another folder"
                )


def save_backbone(
    folder: str | Path,
    backbone: Backbone,
    settings: BackboneSettings,
    plan: Plan,
    about: dict[str, Any],
) -> None:
    """Write a pretrained backbone as a model folder that `Segmenter.load_backbone` reads.

    Args:
        folder: to be written.
        backbone: built by `make_backbone(settings, plan)`.
        settings: of the backbone.
        plan: of the volumes that it was trained on.
        about: further entries of config.json, such as how it was pretrained.
    """
    state = {f"{PREFIX}{name}": value for name, value in backbone.state_dict().items()}
    card = _card(backbone, plan, f"pretrained: {about}", "backbone")
    _write(folder, {"class": BACKBONE, **about}, settings, state, plan, card)


def load_backbone_and_head(path: str | Path) -> tuple[Backbone, nn.Conv3d | None, Plan]:
    """Backbone, head and plan of a model folder, on the CPU; a pretrained backbone has no head.

    Raises:
        MedarError: see `Segmenter.from_pretrained`.
    """
    folder = find_model(path, "segmentation network")
    values, settings = _read(folder, (SEGMENTER, BACKBONE))
    if values["class"] == SEGMENTER:
        model = Segmenter.from_pretrained(folder, "cpu")
        return model.backbone, model.head, model.plan
    plan = read_preprocess(folder, Plan)
    backbone = make_backbone(settings, plan)
    load_weights(backbone, folder, prefix=PREFIX)
    return backbone.eval(), None, plan


def _read(folder: Path, classes: tuple[str, ...]) -> tuple[dict[str, Any], BackboneSettings]:
    """The content of config.json, and the backbone's settings in it."""
    values = read_config(folder, classes, FORMAT_VERSION, "segmentation model")
    backbone = values.get("backbone")
    if not isinstance(backbone, dict):
        raise MedarError(f"{folder / CONFIG}: key 'backbone' is missing")
    imports = values.get("imports")
    if isinstance(imports, dict):
        BACKBONES.load_external(str(backbone.get("kind")), imports.get("backbone"), Backbone)
    return values, from_dict(BackboneSettings, backbone, f"{folder / CONFIG}: backbone")


def _write(
    folder: str | Path,
    config: dict[str, Any],
    settings: BackboneSettings,
    state: dict[str, Tensor],
    plan: Plan,
    card: str,
) -> None:
    config = {**config, "backbone": to_dict(settings)}
    if path := BACKBONES.import_path(settings.kind):
        config["imports"] = {"backbone": path}
    write_model(
        folder,
        config=config,
        version=FORMAT_VERSION,
        weights=weight_bytes(state),
        card=card,
        preprocess=plan,
    )


def _card(module: nn.Module, plan: Plan, first: str, kind: str) -> str:
    size, spacing = " x ".join(map(str, plan.size)), " x ".join(f"{s:g}" for s in plan.spacing)
    parameters = sum(p.numel() for p in module.parameters())
    return model_card(
        kind,
        [first, f"windows: {size} voxels, spacing {spacing} mm", f"parameters: {parameters:,}"],
    )
