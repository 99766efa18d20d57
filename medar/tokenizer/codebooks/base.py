"""What every codebook can do, its settings, and the search for nearest codes.

N vectors, D code width, V codebook size.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from medar.errors import MedarError
from medar.settings import STRICT

CHUNK_BYTES = 32 << 20
"""Memory of the distances that `nearest` holds at once."""


@dataclass(frozen=True, kw_only=True)
class CodebookSettings:
    """Which codebook, and how it learns.

    Raises:
        MedarError: a value beyond what its field allows.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    kind: Literal["ema", "gradient", "fsq", "bsq"] = "ema"
    """"ema": moving averages, with k-means start and restart of dead codes. "gradient": learnt like
    any weight (VAR's). "fsq": finite scalar quantisation. "bsq": binary spherical."""
    size: int = 512
    """V, the number of codes; "bsq" needs a power of two, "fsq" comes as close as it can."""
    width: int = 32
    """D, numbers in a vector to quantise."""
    decay: float = 0.97
    """"ema": what stays of the old averages at each step."""
    restarts: bool = True
    """"ema": give dead codes the place of vectors drawn from the batch."""
    dead_below: float = 0.1
    """"ema": a code is dead when it is used less than this share of the mean."""
    restart_limit: float = 0.05
    """"ema": largest share of the codes that is restarted in one step."""
    levels: tuple[int, ...] = ()
    """"fsq": values of each dimension, their product being the size; empty: chosen by `size`."""
    entropy_weight: float = 0.1
    """"bsq": weight of the entropy terms in the loss."""

    def __post_init__(self) -> None:
        if not 2 <= self.size <= 1 << 30:
            raise MedarError(f"size {self.size}: 2 to {1 << 30} codes are possible")
        if self.kind == "bsq" and self.size & (self.size - 1):
            near = 1 << (self.size.bit_length() - 1)
            raise MedarError(f"size {self.size}: bsq needs a power of two, {near} or {2 * near}")
        if self.width < 1:
            raise MedarError(f"width {self.width}: a whole number from 1 is needed")
        if not 0 <= self.decay < 1:
            raise MedarError(f"decay {self.decay}: a number from 0 to below 1 is needed")
        if not 0 <= self.dead_below < 1:
            raise MedarError(f"dead_below {self.dead_below}: a share from 0 to below 1 is needed")
        if not 0 < self.restart_limit <= 1:
            raise MedarError(
                f"restart_limit {self.restart_limit}: a share above 0, up to 1, is needed; "
                "`restarts: false` switches restarts off"
            )
        if any(level < 2 for level in self.levels):
            raise MedarError(f"levels {list(self.levels)}: whole numbers from 2 are needed")
        if self.entropy_weight < 0:
            raise MedarError(f"entropy_weight {self.entropy_weight}: 0 or more is needed")


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantised:
    """Vectors after quantisation."""

    vectors: Tensor
    """(N, D) the codes taken. Gradients reach the codebook's parameters, not its input."""
    indices: Tensor
    """(N,) int64."""
    loss: Tensor
    """What this codebook adds to the loss, a scalar; its gradients reach the input too."""


class Codebook(nn.Module, ABC):
    """A finite set of vectors. Vectors are fp32; the caller switches autocast off.

    Attributes:
        size: V, the number of codes.
        width: D, numbers in a vector.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size = size
        self.width = width

    @abstractmethod
    def quantise(self, vectors: Tensor) -> Tensor:
        """The code that each vector is nearest to: (N, D) fp32 -> (N,) int64."""

    @abstractmethod
    def lookup(self, indices: Tensor) -> Tensor:
        """The vectors of codes: (...,) -> (..., D) fp32."""

    def forward(self, vectors: Tensor) -> Quantised:
        """Quantise (N, D) fp32 vectors, with what learning needs."""
        indices = self.quantise(vectors.detach())
        return Quantised(vectors=self.lookup(indices), indices=indices, loss=vectors.new_zeros(()))

    def needs_start(self) -> bool:
        """Whether `start` should see a batch of vectors before the first one is quantised."""
        return False

    def start(self, vectors: Tensor) -> None:
        """Place the codes by a first batch of vectors, (B, L, D)."""

    def learn(self, vectors: Tensor, indices: Tensor) -> None:
        """Take in a training batch, (B, L, D) and (B, L), where no gradient does so."""


class ProjectedCodebook(Codebook):
    """A codebook with a width of its own, `inner`, behind linear maps where that is not D.

    At first the maps are orthogonal and each other's inverse, as far as two widths allow, so that
    a code lies near what it stands for.
    """

    def __init__(self, size: int, width: int, inner: int) -> None:
        super().__init__(size, width)
        self.inner = inner
        self.into: nn.Module = nn.Identity()
        self.out_of: nn.Module = nn.Identity()
        if inner != width:
            into, out_of = nn.Linear(width, inner), nn.Linear(inner, width)
            nn.init.orthogonal_(into.weight)
            with torch.no_grad():
                out_of.weight.copy_(into.weight.T)
            nn.init.zeros_(into.bias)
            nn.init.zeros_(out_of.bias)
            self.into, self.out_of = into, out_of

    def project_in(self, vectors: Tensor) -> Tensor:
        """(..., D) -> (..., inner)."""
        inner: Tensor = self.into(vectors)
        return inner

    def project_out(self, inner: Tensor) -> Tensor:
        """(..., inner) -> (..., D)."""
        vectors: Tensor = self.out_of(inner)
        return vectors


def nearest(vectors: Tensor, codes: Tensor, *, chunk_bytes: int = CHUNK_BYTES) -> Tensor:
    """The nearest code of each vector by Euclidean distance, in chunks of bounded memory.

    Args:
        vectors: (N, D).
        codes: (V, D).
        chunk_bytes: memory of the distances held at once; one vector's at least.

    Returns:
        (N,) int64.
    """
    rows = max(1, chunk_bytes // (4 * len(codes)))
    half = codes.square().sum(dim=1) / 2
    # Half the squared distance, less the vector's own square, which changes no order.
    chunks = torch.split(vectors, rows)
    return torch.cat([torch.addmm(half, one, codes.T, alpha=-1).argmin(dim=1) for one in chunks])
