"""Packages whose names are imported on first use, so that importing a package is fast (PEP 562)."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any


def lazy(package: str, entries: Sequence[str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package.

    Args:
        package: its name.
        entries: what it offers, as "medar.synthesis.region:Box". `medar.recipes.code` follows them.
    """
    modules = {name: module for module, _, name in (entry.partition(":") for entry in entries)}

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(modules[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return get
