"""The interface of a codebook, its settings, the registry of kinds, and nearest-code search.

N vectors, D code width, V codebook size.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isqrt, log2
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from medar.errors import MedarError
from medar.registry import C, Registry, path_of
from medar.settings import FractionBelowOne, NonNegativeFloat, Width, settings

CHUNK_BYTES = 32 << 20
"""Memory for the distances that `nearest` holds at once."""

BUILTIN = {
    "ema": "medar.tokenizer.codebooks.learned:EMACodebook",
    "gradient": "medar.tokenizer.codebooks.learned:GradientCodebook",
    "fsq": "medar.tokenizer.codebooks.lookup_free:FiniteScalarCodebook",
    "bsq": "medar.tokenizer.codebooks.lookup_free:BinarySphericalCodebook",
    "product": "medar.tokenizer.codebooks.product:ProductCodebook",
}

CODEBOOKS: Registry[Callable[["CodebookSettings"], "Codebook"]] = Registry(
    "codebook", "medar.codebooks", BUILTIN
)
"""Codebook classes by the name that `CodebookSettings.kind` takes."""

RENAMED = {
    "decay": "ema_decay",
    "restarts": "restart_dead_codes",
    "dead_below": "dead_code_threshold",
    "restart_limit": "max_restart_fraction",
    "levels": "fsq_levels",
}


def register_codebook(name: str) -> Callable[[C], C]:
    """A class decorator that makes a `Codebook` available as `CodebookSettings(kind=name)`.

    The class is constructed with the settings alone. A model folder records its import path, so
    that the model loads wherever the class can be imported.

    Raises:
        MedarError: another class has the name.
    """
    return CODEBOOKS.register(name)


@settings(renamed=RENAMED)
class CodebookSettings:
    """Kind and learning of a codebook."""

    kind: str = "ema"
    """"ema": moving averages, with k-means initialisation and restarts of dead codes. "gradient":
    learned like any weight, as in VAR. "product": an "ema" codebook for each half of a vector.
    "fsq": finite scalar quantisation. "bsq": the sign of each feature, after binary spherical
    quantisation. Or a name given to `register_codebook`."""
    size: Annotated[int, Field(ge=2, le=1 << 30)] = 512
    """V, the number of codes; "product" needs a square, "bsq" needs 2 to the power of `width`,
    "fsq" gets as close as it can."""
    width: Width = 32
    """D, features of a code; "product" needs an even number."""
    ema_decay: FractionBelowOne = 0.97
    """"ema", "product": what remains of the old averages after each step."""
    restart_dead_codes: bool = True
    """"ema", "product": move dead codes onto vectors drawn from the batch."""
    dead_code_threshold: FractionBelowOne = 0.1
    """"ema", "product": a code is dead when it is used less than this fraction of the mean."""
    max_restart_fraction: Annotated[float, Field(gt=0, le=1)] = 0.05
    """"ema", "product": largest fraction of the codes that is restarted in one step."""
    fsq_levels: tuple[Annotated[int, Field(ge=2)], ...] = ()
    """"fsq": levels of each dimension, whose product is the size; empty: chosen to match `size`."""
    entropy_weight: NonNegativeFloat = 0.1
    """"bsq": weight of the entropy terms in the loss."""
    options: dict[str, Any] = field(default_factory=dict)
    """Values for a codebook from outside medar, which checks them itself."""

    def __post_init__(self) -> None:
        CODEBOOKS.check(self.kind, "kind")
        if self.options and self.kind in BUILTIN:
            raise MedarError(
                f"options {self.options}: codebook {self.kind!r} has none; they are for codebooks "
                "registered from outside medar"
            )
        if self.kind == "bsq" and self.size != 1 << self.width:
            bits = max(1, round(log2(self.size)))
            raise MedarError(
                f"size {self.size}, width {self.width}: bsq has one bit per feature, so that size "
                f"must be 2^width; for a size of {1 << bits} set width {bits}"
            )
        if self.kind == "product":
            root = isqrt(self.size)
            if root**2 != self.size:
                raise MedarError(
                    f"size {self.size}: product has two codebooks of the same size, so that size "
                    f"must be a square, {root**2} or {(root + 1) ** 2}"
                )
            if self.width % 2:
                raise MedarError(f"width {self.width}: product halves vectors; set an even number")


def make_codebook(settings: CodebookSettings) -> "Codebook":
    """The codebook that the settings describe.

    Its `size` is the actual one: FSQ gets close to `settings.size` where it cannot match it.

    Raises:
        MedarError: unknown kind, or a registered class that is not a `Codebook`.
    """
    implementation = CODEBOOKS[settings.kind]
    if not _is_codebook(implementation):
        raise MedarError(
            f"codebook {settings.kind!r}: {path_of(implementation)} is not a subclass of Codebook"
        )
    return implementation(settings)


def _is_codebook(implementation: Any) -> bool:
    return isinstance(implementation, type) and issubclass(implementation, Codebook)


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantised:
    """Vectors after quantisation."""

    vectors: Tensor
    """(N, D) the chosen codes. Gradients reach the codebook's parameters, not its input."""
    indices: Tensor
    """(N,) int64."""
    loss: Tensor
    """Scalar that this codebook adds to the loss; its gradients reach the input too."""


class Codebook(nn.Module, ABC):
    """A finite set of vectors. All computations are in fp32; the caller switches autocast off.

    A subclass takes a `CodebookSettings` alone.

    Args:
        size: V, the number of codes.
        width: D, features of a code.
    """

    collapse_advice: ClassVar[str] = "change the codebook's settings"
    """What to do when few codes are used; part of a warning."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size = size
        self.width = width

    @property
    def radices(self) -> tuple[int, ...]:
        """Number of values of each digit of an index, lowest digit first; (V,) if it has none."""
        return (self.size,)

    @abstractmethod
    def quantise(self, vectors: Tensor) -> Tensor:
        """The index of each vector's nearest code: (N, D) fp32 -> (N,) int64."""

    @abstractmethod
    def lookup(self, indices: Tensor) -> Tensor:
        """The codes of indices: (...,) -> (..., D) fp32."""

    def forward(self, vectors: Tensor) -> Quantised:
        """Quantise (N, D) fp32 vectors, with what training needs."""
        indices = self.quantise(vectors.detach())
        return Quantised(vectors=self.lookup(indices), indices=indices, loss=vectors.new_zeros(()))

    def needs_start(self) -> bool:
        """Whether `start` has to see a batch of vectors before the first is quantised."""
        return False

    def start(self, vectors: Tensor) -> None:
        """Initialise the codes from a first batch of vectors, (B, L, D)."""

    def learn(self, vectors: Tensor, indices: Tensor) -> None:
        """Update the codes by a training batch, (B, L, D) and (B, L), where no gradient does."""


def nearest(vectors: Tensor, codes: Tensor, *, chunk_bytes: int = CHUNK_BYTES) -> Tensor:
    """The nearest code of each vector by Euclidean distance, in chunks of bounded memory.

    Args:
        vectors: (N, D).
        codes: (V, D).
        chunk_bytes: memory for the distances held at once; at least those of one vector.

    Returns:
        (N,) int64.
    """
    rows = max(1, chunk_bytes // (4 * len(codes)))
    half = codes.square().sum(dim=1) / 2
    # Half the squared distance without the vector's own square, which does not change the order.
    chunks = torch.split(vectors, rows)
    return torch.cat([torch.addmm(half, one, codes.T, alpha=-1).argmin(dim=1) for one in chunks])
