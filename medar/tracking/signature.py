"""What models in MLflow are, take and give, and what they need where they are loaded."""

from pathlib import Path
from typing import Any, Literal

import medar
from medar.errors import MedarError
from medar.files import read_json_object

Kind = Literal["tokenizer", "generator", "segmenter"]

Column = tuple[str, str, bool]
"""Name, MLflow's type ("any" for what has several), and whether it must be there."""

COLUMNS: dict[Kind, tuple[tuple[Column, ...], tuple[Column, ...]]] = {
    "generator": (
        (
            ("seed", "any", True),
            ("n", "any", False),
            ("class", "string", False),
            ("attributes", "any", False),
            ("sampling", "any", False),
            ("modality", "string", False),
            ("mask", "binary", False),
            ("inpaint", "binary", False),
            ("region", "binary", False),
            ("upscale", "binary", False),
        ),
        (
            ("seed", "long", True),
            ("image", "binary", True),
            ("label", "binary", False),
            ("about", "string", True),
        ),
    ),
    "segmenter": (
        (("volume", "binary", True), ("mirrors", "string", False), ("modality", "string", False)),
        (("label", "binary", True), ("about", "string", True)),
    ),
    "tokenizer": (
        (("volume", "binary", True), ("upto", "any", False), ("modality", "string", False)),
        (
            ("image", "binary", True),
            ("label", "binary", False),
            ("psnr", "double", False),
            ("outside", "double", True),
        ),
    ),
}
"""What models take and give, as `medar.tracking.serving` does. Whole numbers that are asked for are
"any": MLflow would cut off the fraction of any other."""

CLASSES: dict[str, Kind] = {"Tokenizer": "tokenizer", "Segmenter": "segmenter"}
"""What the classes in a model folder are; the others are generators, of which there are several."""


def kind_of(folder: Path) -> Kind:
    """What a model folder holds.

    Raises:
        MedarError: no model.
    """
    config = folder / "config.json"
    if not config.exists():
        raise MedarError(f"{folder}: no model (no {config.name}); a model folder is needed")
    name = read_json_object(config).get("class")
    if not isinstance(name, str):
        raise MedarError(f"{config}: names no class; a model folder is needed")
    return CLASSES.get(name, "generator")


def signature(kind: Kind) -> Any:
    """What a model takes and gives, as MLflow checks it."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import AnyType

    def schema(columns: tuple[Column, ...]) -> Any:
        return Schema(
            [
                ColSpec(AnyType() if type_ == "any" else type_, name, required=required)
                for name, type_, required in columns
            ]
        )

    inputs, outputs = COLUMNS[kind]
    return ModelSignature(inputs=schema(inputs), outputs=schema(outputs))


def requirements() -> list[str]:
    """What a model needs where it is loaded; medar brings the rest of its own libraries."""
    from importlib.metadata import version

    torch = version("torch").partition("+")[0]
    return [f"medar=={medar.__version__}", f"mlflow=={version('mlflow')}", f"torch=={torch}"]
