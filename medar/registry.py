"""`Registry`: implementations by name, medar's own and those of other packages.

A codebook, mixer, pretext task, backbone or feature extractor is chosen by a name in the settings.
Names come from three sources:

- medar's own implementations, imported when they are first needed;
- classes marked with a decorator, such as `@register_codebook("residual_fsq")`;
- entry points of installed packages, in a group such as `medar.codebooks`.

A model folder keeps `import_path` of each class that is not medar's own, so that the model loads
again wherever that class can be imported: from an installed package, PYTHONPATH, or a module that
was imported before, but never from the folder itself or the current directory.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from medar.errors import MedarError, one_line
from medar.settings import did_you_mean

T = TypeVar("T")
C = TypeVar("C", bound=Callable[..., Any])


class Registry(Generic[T]):
    """Implementations of one kind, by name.

    Args:
        kind: of the implementations, for messages: "codebook".
        group: the entry point group in which other packages name theirs.
        builtin: medar's own, as "module:attribute".
    """

    def __init__(self, kind: str, group: str, builtin: Mapping[str, str]) -> None:
        self.kind, self.group = kind, group
        self._paths = dict(builtin)
        self._registered: dict[str, T] = {}
        self._announced: set[str] = set()
        self._scanned = False

    def register(self, name: str) -> Callable[[C], C]:
        """A decorator that makes a class available under a name.

        Raises:
            MedarError: another class has the name.
        """

        def decorate(implementation: C) -> C:
            path, other = path_of(implementation), self._path(name)
            if other not in (None, path) and not self._announces(name, path):
                raise MedarError(
                    f"{self.kind} {name!r} is already registered, by {other}; choose another name"
                )
            self._registered[name] = implementation  # type: ignore[assignment]
            return implementation

        return decorate

    def __getitem__(self, name: str) -> T:
        """The implementation of a name.

        Raises:
            MedarError: the name is unknown, or its module cannot be imported.
        """
        self.check(name)
        if name not in self._registered:
            self._registered[name] = load(self._paths[name], f"{self.kind} {name!r}")
        return self._registered[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def check(self, name: str, key: str = "") -> None:
        """Raise a `MedarError` that lists the known names unless `name` is one of them.

        Args:
            name: as given.
            key: the settings key it was given for.
        """
        names = self._names()
        if name not in names:
            hint = did_you_mean(str(name), names, listed=f"known {self.kind}s")
            at = f"{key}: " if key else ""
            raise MedarError(f"{at}unknown {self.kind} {name!r}; {hint}")

    def import_path(self, name: str) -> str | None:
        """ "module:attribute" of an implementation from outside medar; None for medar's own."""
        path = path_of(self[name])
        return None if path.startswith("medar.") else path

    def load_external(self, name: str, path: str | None, base: type = object) -> None:
        """Make a class that a model folder names available, by importing its module.

        A folder may come from anywhere, so its word is no reason to import a file that merely lies
        in the current directory, and what it names must be a subclass of `base` or be registered
        by its own module.

        Args:
            name: the implementation's name in the settings.
            path: `import_path` as the folder keeps it.
            base: the class that implementations derive from.

        Raises:
            MedarError: the module cannot be imported, lies in the current directory and was not
                imported before, or does not hold such a class.
        """
        if path is None or name in self._names():
            return
        what = f"{self.kind} {name!r}"
        module = str(path).partition(":")[0]
        if module not in sys.modules and _in_current_directory(module):
            raise MedarError(
                f"{what}: {path} lies in the current directory, which medar does not import from "
                f"because a model folder names it; import {module} first, or install it"
            )
        implementation = load(str(path), what)
        if name in self._registered:  # by the module's decorator
            return
        if not (isinstance(implementation, type) and issubclass(implementation, base)):
            raise MedarError(f"{what}: {path} does not derive from {base.__name__}")
        self._registered[name] = cast(T, implementation)

    def _names(self) -> list[str]:
        if not self._scanned:
            self._scanned = True
            for entry in entry_points(group=self.group):
                if entry.name not in self._paths:
                    self._paths[entry.name] = entry.value
                    self._announced.add(entry.name)
        return sorted({*self._paths, *self._registered})

    def _path(self, name: str) -> str | None:
        """ "module:attribute" of a name, without importing anything; None if it is free."""
        self._names()
        if name in self._registered:
            return path_of(self._registered[name])
        return self._paths.get(name)

    def _announces(self, name: str, path: str) -> bool:
        """Whether a class comes from the package whose entry point has its name."""
        if name not in self._announced:
            return False
        return (
            self._paths[name].partition(":")[0].split(".")[0]
            == path.split(".")[0].partition(":")[0]
        )


def path_of(implementation: Any) -> str:
    """ "module:attribute", by which an implementation can be imported again."""
    return f"{implementation.__module__}:{implementation.__qualname__}"


def load(path: str, setting: str) -> Any:
    """Import "module:attribute".

    Raises:
        MedarError: there is no such module or attribute.
    """
    module, _, attribute = path.partition(":")
    try:
        found: Any = import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise MedarError(
            f"{setting}: {path} cannot be imported ({one_line(error)}); install the package that "
            "defines it"
        ) from error
    return found


def _in_current_directory(module: str) -> bool:
    """Whether Python would find a module's top level in the current directory."""
    try:
        spec = find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        return False  # importing it says why
    if spec is None:
        return False
    files = [
        *(spec.submodule_search_locations or []),
        *([spec.origin] if spec.has_location else []),
    ]
    here = Path.cwd().resolve()
    return any(Path(str(file)).parent.resolve() == here for file in files)
