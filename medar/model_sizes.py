"""Sizes in a config.json that its weights cannot have, found before a network is built.

Building ten million blocks, or layers of ten million features, would take hours or all memory, only
to find that the weights are not theirs. A block has at least one tensor, a layer between features
of one width at least their square, and any other size at least one number.
"""

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from medar.errors import MedarError

SIZED = (
    "model", "condition", "schedule", "network", "codebook", "quantiser", "backbone", "channels",
    "fold", "strides", "widths", "steps",
)  # fmt: skip
"""Keys of config.json that a network is built from."""

FREE = ("options",)
"""Keys below them that only a registered class understands."""

DEEP = ("depth", "blocks_per_level", "max_levels", "scales")
WIDE = ("width", "head_width", "widths")


def check_sizes(config: Mapping[str, Any], path: Path, weights: Path) -> None:
    """Compare the sizes in a config.json with the weights beside it.

    Args:
        config: its content.
        path: of config.json, for messages.
        weights: the file of the weights.

    Raises:
        MedarError: a size is beyond what the file can hold, with the key in the message; or the
            file is absent, or holds no tensor.
    """
    try:
        size, tensors = weights.stat().st_size, _tensors(weights)
    except OSError as error:
        raise MedarError(f"{weights}: cannot be read ({error.strerror})") from error
    if not tensors:
        raise MedarError(
            f"{weights}: not the weights of this configuration (it holds no tensor); restore the "
            "file from a copy"
        )
    for name, key, number in _sizes({k: config[k] for k in SIZED if k in config}):
        needed = number**2 if key in WIDE else number
        if needed > size or (key in DEEP and number > tensors):
            raise MedarError(
                f"{path}: {name} {number} cannot belong to {weights.name}, which has {tensors} "
                f"tensors in {size} bytes; restore both files from a copy"
            )


def _sizes(value: Any, name: str = "", key: str = "") -> Iterator[tuple[str, str, int]]:
    """The integers in a configuration, and products that are sizes too: dotted name, key, value."""
    if isinstance(value, dict):
        for own, part in value.items():
            if own not in FREE:
                yield from _sizes(part, f"{name}.{own}" if name else str(own), str(own))
        pairs = (("depth", "head_width"), ("width", "width_multipliers"))
        for one, other in pairs:
            first, second = value.get(one), value.get(other)
            factors = second if isinstance(second, list) else [second]
            if all(type(n) is int for n in (first, *factors)) and factors:
                yield f"{name}.{one} times {other}", "width", first * max(factors)
    elif isinstance(value, list):
        for part in value:
            yield from _sizes(part, name, key)
        if key == "grids" and value and all(type(n) is int for n in value):
            yield f"{name} {value}: sites", key, prod(value)
    elif type(value) is int:
        yield name, key, abs(value)


def _tensors(weights: Path) -> int:
    """Number of tensors in a safetensors file, at most: each has this key once in its header."""
    with weights.open("rb") as file:
        length = min(int.from_bytes(file.read(8), "little"), weights.stat().st_size)
        return file.read(length).count(b'"data_offsets"')
