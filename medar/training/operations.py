"""The operations of a training, and the most that its device can do.

The fraction of the ceiling says how well a training uses the device: what a matrix product of large
matrices reaches is measured in the same process, with as many threads, in the same precision.
"""

import contextlib
import time
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry as FORMULAS  # noqa: N812  a constant

from medar.training.precision import Precision

SIDES = {"cpu": 768, "cuda": 8192}
"""Sides of the square matrices whose product is measured, by device."""

REPEATS = 5


@cache
def gemm_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a product of two square matrices: the fastest of a few."""
    side = SIDES[device.type]
    random = torch.Generator(device).manual_seed(0)  # the training's numbers stay as they are
    a, b = (torch.rand(side, side, generator=random, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds[1:])


def _attention(queries: Tensor, keys: Tensor, *_: Any, **__: Any) -> int:
    """FLOP of attention forward: two products of all pairs."""
    batch, heads, sites, width = queries.shape
    return 4 * batch * heads * sites * keys.shape[2] * width


def _attention_backward(_: Tensor, queries: Tensor, keys: Tensor, *__: Any, **___: Any) -> int:
    """FLOP of attention backward: five products, as the first is computed again."""
    return _attention(queries, keys) * 5 // 2


# torch has formulas for the kernels of CUDA alone.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts FLOP by torch's formulas, two per multiply-add.

    torch's own `FlopCounterMode` takes some operations apart, which rounds otherwise: a resumed
    training would not equal one that was never interrupted.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        kind = func._overloadpacket
        formula: Any = CPU_ATTENTION.get(kind) or FORMULAS.get(kind)
        if formula is not None:
            self.flops += int(formula(*args, **(kwargs or {}), out_val=made))
        return made


class Operations:
    """Operations per unit of a training, counted on its second batch.

    The first one may be compiled, or prepare what later ones use, as the detail decoder's task
    decodes all volumes then.

    Recomputed activations and what is made without gradients count too; losses that start later
    and kernels of other packages do not.

    Args:
        precision: of the forward pass.
    """

    def __init__(self, precision: Precision) -> None:
        self.precision = precision
        self.per_unit: float | None = None
        """FLOP per unit, such as a voxel; None until they are counted."""
        self._batches_before = 1

    def counting(self, amount: int) -> contextlib.AbstractContextManager[object]:
        """The context of a batch's forward and backward pass.

        Args:
            amount: units in the batch; batches without are not counted.
        """
        if self.per_unit is not None or amount == 0:
            return contextlib.nullcontext()
        if self._batches_before:
            self._batches_before -= 1
            return contextlib.nullcontext()
        return self._count(amount)

    def fraction(self, speed: float) -> float | None:
        """Fraction of the ceiling, from units per second and device; None if nothing is counted."""
        if not self.per_unit:
            return None
        return self.per_unit * speed / gemm_ceiling(self.precision.device, self.precision.dtype)

    @contextlib.contextmanager
    def _count(self, amount: int) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if self.precision.compile:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            counter = stack.enter_context(Counter())
            yield
        self.per_unit = counter.flops / amount
