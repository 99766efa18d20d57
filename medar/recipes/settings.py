"""What the YAMLs of all recipes have in common, and how they are read: parts inline or in files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from medar.errors import MedarError
from medar.settings import STRICT, from_dict, overridden, read_yaml
from medar.tokenizer.settings import TokenizerSettings

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The data set."""

    __pydantic_config__: ClassVar[Any] = STRICT

    path: Path | None = None
    """Folder, dataset.json, JSONL manifest or single volume; usually given as --data."""
    attributes: Path | None = None
    """CSV or TSV with a row a case; default: the one in the folder."""
    modality: Literal["CT", "MR"] | None = None
    """For data sets that do not say what their volumes are."""
    seed: int = 0
    """Decides which subjects go to train, val and test where the data set does not. Once decided
    in a run's folder, that stays."""
    voxels: int | None = None
    """Voxels that a model sees at once, at most, where the plan is derived; default that of
    `medar data plan`."""
    workers: int | None = None
    """Processes that prepare; default one a processor."""

    def __post_init__(self) -> None:
        for name in ("voxels", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise MedarError(f"data {name} {value}: a number from 1 is needed")

    def placed(self) -> "DataSettings":
        """The same with absolute paths, so that they hold in another working directory too."""
        return replace(self, path=absolute(self.path), attributes=absolute(self.attributes))


def load_recipe(kind: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Read a recipe's YAML.

    A part that is a text names a file of its settings, relative to the YAML:
    `tokenizer: tokenizer/demo.yaml`. Overrides come after that.

    Args:
        kind: the recipe's settings.
        path: the file.
        overrides: values that replace the file's, as `key.below=value`, the value in YAML.

    Raises:
        MedarError: one line that names the file, the key, the value and what is allowed.
    """
    path = Path(path)
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise MedarError(f"{path}: a mapping of settings is needed, not {type(values).__name__}")
    values = {
        name: read_yaml(path.parent / part) if isinstance(part, str) else part
        for name, part in values.items()
    }
    where = f"{path} with {' '.join(overrides)}" if overrides else str(path)
    return from_dict(kind, overridden(values, overrides), where)


def placed(tokenizer: TokenizerSettings) -> TokenizerSettings:
    """A tokenizer's settings with absolute paths."""
    loss = tokenizer.loss
    return replace(tokenizer, loss=replace(loss, perceptual_file=absolute(loss.perceptual_file)))


def absolute(path: Path | None) -> Path | None:
    """The absolute path, where there is one."""
    return None if path is None else path.absolute()


def check_budget(minutes: float | None) -> None:
    """Refuse a budget that is not above 0."""
    if minutes is not None and not 0 < minutes < float("inf"):
        raise MedarError(f"max_minutes {minutes}: a number above 0 is needed")


def check_shares(shares: Mapping[str, float]) -> None:
    """Refuse shares of a budget that are not above 0."""
    for name, value in shares.items():
        if not 0 < value < float("inf"):
            raise MedarError(f"shares {name} {value}: a number above 0 is needed")
