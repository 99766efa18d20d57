"""The model folder of a generator: all that synthesis needs.

config.json         class, format version, sizes and conditions, digest of the tokenizer, default
                    sampling settings, import path of a mixer that is not medar's own
model.safetensors   the weights, except those of the quantiser, which are the tokenizer's
tokenizer/          the tokenizer's own model folder
README.md           the model card
"""

from pathlib import Path
from typing import Any

from medar.errors import MedarError
from medar.generator.mixers import MIXERS, Mixer
from medar.generator.settings import GeneratorConfig, SamplingSettings
from medar.model_folder import CONFIG, find_model, model_card, read_config, write_model
from medar.settings import from_dict, to_dict
from medar.tokenizer.tokenizer import Tokenizer

CLASS, FORMAT_VERSION = "Generator", 2
TOKENIZER = "tokenizer"


def write_folder(
    folder: str | Path,
    config: GeneratorConfig,
    weights: bytes,
    parameters: int,
    tokenizer: Tokenizer,
    sampling: SamplingSettings,
) -> None:
    """Write a model folder, file by file atomically, config.json last.

    Args:
        folder: to be written.
        config: of the generator.
        weights: the content of model.safetensors.
        parameters: their number, for the model card.
        tokenizer: whose tokens the generator predicts.
        sampling: the folder's default sampling settings.

    Raises:
        MedarError: the sampling settings do not fit the tokenizer's scales.
    """
    folder, schedule = Path(folder), tokenizer.config.schedule
    sampling.check(schedule, config.refinement)
    tokenizer.save_pretrained(folder / TOKENIZER)
    values = {
        "class": CLASS,
        **to_dict(config),
        "tokenizer": tokenizer.digest,
        "sampling": to_dict(sampling),
    }
    if path := MIXERS.import_path(config.model.mixer.kind):
        values["imports"] = {"mixer": path}
    write_model(
        folder,
        config=values,
        version=FORMAT_VERSION,
        weights=weights,
        card=_card(config, parameters, tokenizer),
    )


def read_folder(path: str | Path) -> tuple[Path, GeneratorConfig, Tokenizer, SamplingSettings]:
    """Read what `write_folder` wrote, except the weights.

    Args:
        path: the model folder, or that of its training run; or a name (`find_model`).

    Returns:
        The model folder, the generator's config, its tokenizer on the CPU, and the folder's default
        sampling settings.

    Raises:
        MedarError: a file is absent, damaged or of another class or format; or a tokenizer that the
            generator was not trained with.
    """
    folder = find_model(path, "generator")
    values = read_config(folder, (CLASS,), FORMAT_VERSION, "generator")
    del values["class"]
    digest, chosen = values.pop("tokenizer", None), values.pop("sampling", {})
    tokenizer = Tokenizer.from_pretrained(folder / TOKENIZER, "cpu")
    tokenizer.require_plan()
    if tokenizer.digest != digest:
        raise MedarError(
            f"{folder / TOKENIZER}: tokenizer {tokenizer.digest}, but the generator was trained "
            f"with {digest}; restore that tokenizer"
        )
    _import_mixer(values)
    config = from_dict(GeneratorConfig, values, str(folder / CONFIG))
    sampling = from_dict(SamplingSettings, chosen, f"{folder / CONFIG}: sampling")
    return folder, config, tokenizer, sampling


def _import_mixer(values: dict[str, Any]) -> None:
    """Import the mixer of another package that a folder's config.json names, if it does."""
    imports, model = values.pop("imports", None), values.get("model")
    mixer = model.get("mixer") if isinstance(model, dict) else None
    if isinstance(imports, dict) and isinstance(mixer, dict) and imports.get("mixer"):
        MIXERS.load_external(str(mixer.get("kind")), str(imports["mixer"]), Mixer)


def _card(config: GeneratorConfig, parameters: int, tokenizer: Tokenizer) -> str:
    size = " x ".join(map(str, tokenizer.config.size))
    plan = tokenizer.plan
    spacing = " x ".join(f"{s:g}" for s in plan.spacing) if plan else "unknown"
    model, condition = config.model, config.condition
    attributes = (
        f"{one.name} ({', '.join(one.values)})"
        if one.categorical
        else f"{one.name} (a number; {one.mean:.3g} +- {one.deviation:.3g} in training)"
        for one in condition.attributes
    )
    lines = [
        f"depth {model.depth}, width {model.width}, mixer {model.mixer.kind}",
        f"volumes: {size} voxels, spacing {spacing} mm",
        f"scales: {tokenizer.config.schedule}",
        f"parameters: {parameters:,}, without the tokenizer",
        f"attributes: {'; '.join(attributes) or 'none'}",
        f"map: {condition.map}" + (f" ({condition.source})" if condition.source else ""),
        f"refinement within a scale: {'yes' if config.refinement else 'no'}",
    ]
    return model_card("generator", lines, remark="Makes synthetic volumes.")
