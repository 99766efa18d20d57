"""A generator's model folder: all that synthesis needs, and nothing that belongs elsewhere.

config.json         class, format, the model's sizes and conditions, digest of its tokenizer, and
                    how tokens are chosen where nothing else is asked for
model.safetensors   the model's weights; those of the quantiser are the tokenizer's
tokenizer/          the tokenizer's own model folder
README.md           the model card
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors.torch import load_file, save

from medar.errors import MedarError, one_line
from medar.files import read_json_object, write_bytes, write_json, write_text
from medar.generator.baselines.raster import RasterModel
from medar.generator.baselines.voxel import read_tokenizer
from medar.generator.config import GeneratorConfig
from medar.generator.generator import Generator
from medar.generator.model import TokenModel
from medar.generator.sampling import SamplingSettings
from medar.settings import from_dict, to_dict
from medar.tokenizer.inference import place, plan_of
from medar.tokenizer.tokenizer import CARD, CONFIG, WEIGHTS, Tokenizer

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
    write_bytes(folder / WEIGHTS, _weights(model))
    write_text(folder / CARD, _card(model, tokenizer))
    about = {
        "class": name,
        "format": FORMAT_VERSION,
        **to_dict(model.config),
        "tokenizer": tokenizer.digest,
        "sampling": to_dict(sampling),
    }
    write_json(folder / CONFIG, about)


def load_model(path: str | Path, device: Literal["auto", "cpu", "cuda"] = "auto") -> Loaded:
    """The generator that `save_model` wrote, on a device, in evaluation mode.

    Args:
        path: its folder, or the run's.
        device: "auto" is CUDA where there is one.

    Raises:
        MedarError: a file is absent or damaged, or says that it is something else; or there is no
            such device.
    """
    folder = model_folder(path)
    values = read_json_object(folder / CONFIG)
    said = (values.pop("class", None), values.pop("format", None))
    if said[0] not in tuple(CLASSES) or said[1] != FORMAT_VERSION:
        raise MedarError(
            f"{folder / CONFIG}: class and format {said}; a generator is needed "
            f"({', '.join(CLASSES)}), format {FORMAT_VERSION}"
        )
    digest, chosen = values.pop("tokenizer", None), values.pop("sampling", {})
    tokenizer = read_tokenizer(folder / TOKENIZER)
    plan_of(tokenizer)
    if tokenizer.digest != digest:
        raise MedarError(
            f"{folder / TOKENIZER}: tokenizer {tokenizer.digest}, the generator was trained with "
            f"{digest}; copy that one back"
        )
    config = from_dict(GeneratorConfig, values, str(folder / CONFIG))
    sampling = from_dict(SamplingSettings, chosen, f"{folder / CONFIG}: sampling")
    model = CLASSES[said[0]](config, tokenizer)
    _fill(model, folder / WEIGHTS)
    place(tokenizer, device)
    model.to(next(tokenizer.parameters()).device)
    return Loaded(model=model.eval(), tokenizer=tokenizer, sampling=sampling)


def model_folder(path: str | Path) -> Path:
    """The folder of a generator: `path` itself, or `path/model` where a run left it.

    Raises:
        MedarError: neither is one.
    """
    for folder in _folders(path):
        if (folder / CONFIG).is_file():
            return folder
    raise MedarError(
        f"{path}: no generator (neither {CONFIG} nor model/{CONFIG}); the folder that training "
        "left is needed"
    )


def holds_model(path: str | Path) -> bool:
    """Whether a folder, or its `model`, holds a model at all; reading it tells which."""
    return any((folder / CONFIG).is_file() for folder in _folders(path))


def _folders(path: str | Path) -> tuple[Path, Path]:
    """Where a model may lie: in the folder itself, or where a run left it."""
    return Path(path), Path(path) / "model"


def model_digest(model: TokenModel) -> str:
    """A hash of a model's class, sizes and weights; the quantiser's are the tokenizer's."""
    return hashlib.blake2b(_weights(model), digest_size=16).hexdigest()


def _fill(model: TokenModel, path: Path) -> None:
    """Load a model's own weights."""
    try:
        missing, unexpected = model.load_state_dict(load_file(path), strict=False)
    except Exception as error:
        raise MedarError(
            f"{path}: not the weights of this configuration ({one_line(error)})"
        ) from error
    odd = [*(name for name in missing if not name.startswith(QUANTISER)), *unexpected]
    if odd:
        raise MedarError(f"{path}: not the weights of this configuration (at {odd[0]!r})")


def _weights(model: TokenModel) -> bytes:
    state = {
        name: value.contiguous().cpu()
        for name, value in model.state_dict().items()
        if not name.startswith(QUANTISER)
    }
    about = f"{type(model).__name__} {to_dict(model.config)}"
    return save(state, metadata={"config": about})


def _card(model: TokenModel, tokenizer: Tokenizer) -> str:
    own = (p for name, p in model.named_parameters() if not name.startswith(QUANTISER))
    size = " x ".join(map(str, tokenizer.config.size))
    plan = tokenizer.plan
    spacing = " x ".join(f"{s:g}" for s in plan.spacing) if plan else "unknown"
    condition = model.config.condition
    return (
        "# medar generator\n\n"
        "Makes synthetic volumes. Not a medical device: for research only.\n\n"
        f"- class: {type(model).__name__}, depth {model.config.depth}, width "
        f"{model.config.width}, mixer {model.config.mixer.kind}\n"
        f"- volumes: {size} voxels, spacing {spacing} mm\n"
        f"- scales: {model.schedule}\n"
        f"- parameters: {sum(p.numel() for p in own):,}, without the tokenizer\n"
        f"- can be asked for: {_asked(model)}\n"
        f"- map: {condition.map}\n"
        "- data, licence and limits: to be stated by whoever trained it\n"
    )


def _asked(model: TokenModel) -> str:
    """What volumes can be asked to be, in words."""
    said = (
        f"{one.name} ({', '.join(one.values)})"
        if one.categorical
        else f"{one.name} (a number; {one.mean:.3g} +- {one.deviation:.3g} in training)"
        for one in model.config.condition.attributes
    )
    return "; ".join(said) or "no attribute"
