"""`Shared`: a trained model that other processes load from its folder, once each."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Generic, Protocol, TypeVar

from medar.errors import MedarError


class Pretrained(Protocol):
    """A model of a folder, such as `Segmenter`, `Tokenizer` or `Synthesizer`."""

    loaded_from: tuple[str, str] | None
    """Path and device, as `from_pretrained` got them; None for one that was made in memory."""

    @property
    def digest(self) -> str:
        """A hash of its weights."""


M = TypeVar("M", bound=Pretrained)


class Shared(Generic[M]):
    """A model, pickled as the folder that it was loaded from.

    The process that unpickles it loads it on its own device, and keeps it for the next time. A
    model made in memory is pickled with its weights.

    Args:
        model: in evaluation mode.

    Raises:
        MedarError: when it is unpickled, if the folder is absent or holds another model by now.
    """

    def __init__(self, model: M) -> None:
        self.model = model

    def __reduce__(self) -> tuple[Callable[..., "Shared[M]"], tuple[Any, ...]]:
        if self.model.loaded_from is None:
            return Shared, (self.model,)
        return _load, (type(self.model), *self.model.loaded_from, self.model.digest)


@lru_cache(maxsize=4)
def _load(kind: Any, path: str, device: str, digest: str) -> Shared[Any]:
    model = kind.from_pretrained(path, device)
    if model.digest != digest:
        raise MedarError(
            f"{path}: holds another model than the one that was loaded (digest {model.digest}, "
            f"expected {digest}); run the command again"
        )
    return Shared(model)
