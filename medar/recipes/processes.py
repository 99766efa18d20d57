"""The processes of a recipe, as torchrun starts them: rank 0 decides and writes.

The others take part in trainings only, and wait in between, for days if need be: one process group
lasts for the whole recipe, and trainings use it.
"""

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, Literal, NamedTuple, TypeVar

from medar.errors import MedarError

T = TypeVar("T")

TIMEOUT = timedelta(days=14)
"""How long a process waits for rank 0 to prepare, encode or evaluate."""


class _Message(NamedTuple):
    """What rank 0 sends to the others."""

    value: Any = None
    exit_code: int | None = None
    """Set if they are to end."""


class RecipeProcesses:
    """This process among the others of the recipe."""

    def __init__(self, is_rank_zero: bool = True) -> None:
        self.is_rank_zero = is_rank_zero

    def run_on_rank_zero(self, work: Callable[[], T]) -> T:
        """Call a function on rank 0; all ranks return its result once it is there.

        Raises:
            SystemExit: on the other ranks, if the function failed on rank 0.
        """
        from medar.training.distributed import all_gather_object

        if not self.is_rank_zero:
            message: _Message = all_gather_object(None)[0]
            if message.exit_code is not None:
                raise SystemExit(message.exit_code)
            return message.value  # type: ignore[no-any-return]
        try:
            value = work()
        except BaseException as error:
            with contextlib.suppress(RuntimeError):  # the others may have gone already
                all_gather_object(_Message(exit_code=_exit_code(error)))
            raise
        all_gather_object(_Message(value=value))
        return value


@contextlib.contextmanager
def recipe_processes(device: Literal["auto", "cpu", "cuda"]) -> Iterator[RecipeProcesses]:
    """The processes of this run, connected inside the block; a single one without torchrun.

    Args:
        device: where trainings run.
    """
    import torch

    from medar.training.distributed import current_ranks, process_group

    ranks = current_ranks()
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    use_cuda = cuda and ranks.world_size > 1
    chosen = torch.device("cuda", ranks.local_rank) if use_cuda else torch.device("cpu")
    with process_group(ranks, chosen, TIMEOUT):
        yield RecipeProcesses(ranks.is_rank_zero)


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if isinstance(error, MedarError) else 1
