"""A generator's model folder: all that synthesis needs, and nothing that belongs elsewhere.

config.json         class, format, the model's sizes and conditions, digest of its tokenizer, and
                    how tokens are chosen where nothing else is asked for; the import path of a
                    mixer that is not medar's own
model.safetensors   the model's weights; those of the quantiser are the tokenizer's
tokenizer/          the tokenizer's own model folder
README.md           the model card
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medar.devices import device_of, to_device
from medar.errors import MedarError
from medar.generator.baselines.raster import RasterModel
from medar.generator.baselines.voxel import read_tokenizer
from medar.generator.config import GeneratorConfig
from medar.generator.generator import Generator
from medar.generator.mixers import MIXERS
from medar.generator.model import TokenModel
from medar.generator.sampling import SamplingSettings
from medar.model_folder import (
    CONFIG,
    digest_of,
    find_model,
    load_weights,
    model_card,
    read_config,
    weight_bytes,
    write_model,
)
from medar.settings import from_dict, to_dict
from medar.tokenizer.tokenizer import Tokenizer

FORMAT_VERSION = 1
TOKENIZER = "tokenizer"
QUANTISER = "quantiser."
"""How the names of weights begin that are the tokenizer's."""

Make = Callable[[GeneratorConfig, Tokenizer], TokenModel]

CLASSES: dict[str, Make] = {
    "Generator": lambda config, tokenizer: Generator(
        config, tokenizer.quantiser, tokenizer.config.network.downsampling
    ),
    "RasterModel": lambda config, tokenizer: RasterModel(config, tokenizer.quantiser),
}
"""What a folder may hold, by the name in its config.json."""

KINDS = {"next_scale": "Generator", "raster": "RasterModel"}
"""The same by the name in settings."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Loaded:
    """What a model folder holds."""

    model: TokenModel
    """In evaluation mode."""
    tokenizer: Tokenizer
    """With its plan, on the model's device."""
    sampling: SamplingSettings
    """How tokens are chosen where nothing else is asked for."""


def make_model(kind: str, config: GeneratorConfig, tokenizer: Tokenizer) -> TokenModel:
    """An untrained model for a tokenizer's tokens.

    Args:
        kind: a key of `KINDS`.
        config: its sizes and conditions.
        tokenizer: whose quantiser it takes, frozen.

    Raises:
        MedarError: another kind, or a configuration that the kind does not take.
    """
    if kind not in KINDS:
        raise MedarError(f"generator {kind!r}: no such kind; there are: {', '.join(KINDS)}")
    return CLASSES[KINDS[kind]](config, tokenizer)


def save_model(
    folder: str | Path,
    model: TokenModel,
    tokenizer: Tokenizer | str | Path,
    sampling: SamplingSettings | None = None,
) -> None:
    """Write a generator as a folder, file by file atomically, the configuration last.

    Args:
        folder: where to.
        model: of one of the classes in `CLASSES`.
        tokenizer: whose tokens it predicts, or its folder.
        sampling: how tokens are to be chosen where nothing else is asked for.

    Raises:
        MedarError: a model of another class, or a folder that holds no tokenizer.
    """
    folder, name = Path(folder), type(model).__name__
    if name not in CLASSES:
        raise MedarError(f"{name}: no class of generator; there are: {', '.join(CLASSES)}")
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = read_tokenizer(tokenizer)
    sampling = sampling or SamplingSettings()
    sampling.check(model.schedule)
    tokenizer.save_pretrained(folder / TOKENIZER)
    config = {
        "class": name,
        **to_dict(model.config),
        "tokenizer": tokenizer.digest,
        "sampling": to_dict(sampling),
    }
    if path := MIXERS.import_path(model.config.mixer.kind):
        config["mixer_class"] = path
    write_model(
        folder,
        config=config,
        version=FORMAT_VERSION,
        weights=_weights(model),
        card=_card(model, tokenizer),
    )


def load_model(path: str | Path, device: Literal["auto", "cpu", "cuda"] = "auto") -> Loaded:
    """The generator that `save_model` wrote, on a device, in evaluation mode.

    Args:
        path: its folder, or the run's.
        device: "auto" is CUDA where there is one.

    Raises:
        MedarError: a file is absent or damaged, or says that it is something else; or there is no
            such device.
    """
    folder = find_model(path, "generator")
    values = read_config(folder, tuple(CLASSES), FORMAT_VERSION, "generator")
    name = values.pop("class")
    digest, chosen = values.pop("tokenizer", None), values.pop("sampling", {})
    tokenizer = read_tokenizer(folder / TOKENIZER)
    tokenizer.require_plan()
    if tokenizer.digest != digest:
        raise MedarError(
            f"{folder / TOKENIZER}: tokenizer {tokenizer.digest}, the generator was trained with "
            f"{digest}; copy that one back"
        )
    mixer = values.get("mixer")
    if isinstance(mixer, dict):
        MIXERS.load_external(str(mixer.get("kind")), values.pop("mixer_class", None))
    config = from_dict(GeneratorConfig, values, str(folder / CONFIG))
    sampling = from_dict(SamplingSettings, chosen, f"{folder / CONFIG}: sampling")
    model = CLASSES[name](config, tokenizer)
    load_weights(model, folder, elsewhere=QUANTISER)
    to_device(tokenizer, device)
    model.to(device_of(tokenizer))
    return Loaded(model=model.eval(), tokenizer=tokenizer, sampling=sampling)


def model_digest(model: TokenModel) -> str:
    """A hash of a model's class, sizes and weights; the quantiser's are the tokenizer's."""
    return digest_of(_weights(model))


def _weights(model: TokenModel) -> bytes:
    state = {
        name: value for name, value in model.state_dict().items() if not name.startswith(QUANTISER)
    }
    return weight_bytes(state, f"{type(model).__name__} {to_dict(model.config)}")


def _card(model: TokenModel, tokenizer: Tokenizer) -> str:
    own = (p for name, p in model.named_parameters() if not name.startswith(QUANTISER))
    size = " x ".join(map(str, tokenizer.config.size))
    plan = tokenizer.plan
    spacing = " x ".join(f"{s:g}" for s in plan.spacing) if plan else "unknown"
    condition = model.config.condition
    lines = [
        f"class: {type(model).__name__}, depth {model.config.depth}, width {model.config.width}, "
        f"mixer {model.config.mixer.kind}",
        f"volumes: {size} voxels, spacing {spacing} mm",
        f"scales: {model.schedule}",
        f"parameters: {sum(p.numel() for p in own):,}, without the tokenizer",
        f"can be asked for: {_asked(model)}",
        f"map: {condition.map}",
    ]
    return model_card("generator", lines, remark="Makes synthetic volumes.")


def _asked(model: TokenModel) -> str:
    """What volumes can be asked to be, in words."""
    said = (
        f"{one.name} ({', '.join(one.values)})"
        if one.categorical
        else f"{one.name} (a number; {one.mean:.3g} +- {one.deviation:.3g} in training)"
        for one in model.config.condition.attributes
    )
    return "; ".join(said) or "no attribute"
