"""The model folder of a generator: all that synthesis needs.

config.json         class, format version, sizes and conditions, digest of the tokenizer, default
                    sampling settings, import path of a mixer that is not medar's own
model.safetensors   the weights, except those of the quantiser, which are the tokenizer's
tokenizer/          the tokenizer's own model folder
README.md           the model card
"""

from pathlib import Path
from typing import Any

from medar.devices import DeviceName, device_of, to_device
from medar.errors import MedarError
from medar.generator.generator import Generator
from medar.generator.mixers import MIXERS, Mixer
from medar.generator.settings import GeneratorConfig, SamplingSettings
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

CLASS, FORMAT_VERSION = "Generator", 2
TOKENIZER = "tokenizer"
QUANTISER = "quantiser."
"""Prefix of the weights that are the tokenizer's."""


def save_generator(
    folder: str | Path,
    generator: Generator,
    tokenizer: Tokenizer | str | Path,
    sampling: SamplingSettings | None = None,
) -> None:
    """Write a model folder, file by file atomically, config.json last.

    Args:
        folder: to be written.
        generator: its weights and config.
        tokenizer: whose tokens it predicts, or the tokenizer's folder.
        sampling: the folder's default sampling settings.

    Raises:
        MedarError: the tokenizer's folder holds none, or the sampling settings do not fit.
    """
    folder = Path(folder)
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = Tokenizer.from_pretrained(tokenizer, "cpu")
    sampling = sampling or SamplingSettings()
    sampling.check(generator.schedule)
    tokenizer.save_pretrained(folder / TOKENIZER)
    config = {
        "class": CLASS,
        **to_dict(generator.config),
        "tokenizer": tokenizer.digest,
        "sampling": to_dict(sampling),
    }
    if path := MIXERS.import_path(generator.config.model.mixer.kind):
        config["imports"] = {"mixer": path}
    write_model(
        folder,
        config=config,
        version=FORMAT_VERSION,
        weights=_weights(generator),
        card=_card(generator, tokenizer),
    )


def load_generator(
    path: str | Path, device: DeviceName = "auto"
) -> tuple[Generator, Tokenizer, SamplingSettings]:
    """Read what `save_generator` wrote.

    Args:
        path: the model folder, or that of its training run.
        device: "auto" is CUDA where available.

    Returns:
        The generator and its tokenizer, in evaluation mode on the device, and the folder's default
        sampling settings.

    Raises:
        MedarError: a file is absent, damaged or of another class or format; a tokenizer that the
            generator was not trained with; or no such device.
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
    generator = Generator.for_tokenizer(config, tokenizer)
    load_weights(generator, folder, elsewhere=QUANTISER)
    to_device(tokenizer, device)
    generator.to(device_of(tokenizer))
    return generator.eval(), tokenizer, sampling


def _import_mixer(values: dict[str, Any]) -> None:
    """Import the mixer of another package that a folder's config.json names, if it does."""
    imports, model = values.pop("imports", None), values.get("model")
    mixer = model.get("mixer") if isinstance(model, dict) else None
    if isinstance(imports, dict) and isinstance(mixer, dict) and imports.get("mixer"):
        MIXERS.load_external(str(mixer.get("kind")), str(imports["mixer"]), Mixer)


def generator_digest(generator: Generator) -> str:
    """A hash of a generator's config and weights, without the quantiser's."""
    return digest_of(_weights(generator))


def _weights(generator: Generator) -> bytes:
    state = generator.state_dict()
    own = {name: value for name, value in state.items() if not name.startswith(QUANTISER)}
    return weight_bytes(own, f"{CLASS} {to_dict(generator.config)}")


def _card(generator: Generator, tokenizer: Tokenizer) -> str:
    own = (p for name, p in generator.named_parameters() if not name.startswith(QUANTISER))
    size = " x ".join(map(str, tokenizer.config.size))
    plan = tokenizer.plan
    spacing = " x ".join(f"{s:g}" for s in plan.spacing) if plan else "unknown"
    model, condition = generator.config.model, generator.config.condition
    attributes = (
        f"{one.name} ({', '.join(one.values)})"
        if one.categorical
        else f"{one.name} (a number; {one.mean:.3g} +- {one.deviation:.3g} in training)"
        for one in condition.attributes
    )
    lines = [
        f"depth {model.depth}, width {model.width}, mixer {model.mixer.kind}",
        f"volumes: {size} voxels, spacing {spacing} mm",
        f"scales: {generator.schedule}",
        f"parameters: {sum(p.numel() for p in own):,}, without the tokenizer",
        f"attributes: {'; '.join(attributes) or 'none'}",
        f"map: {condition.map}",
    ]
    return model_card("generator", lines, remark="Makes synthetic volumes.")
