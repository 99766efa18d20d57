"""The processes of a recipe, as torchrun starts them: the first decides and writes.

The others take part in trainings alone. Meanwhile they wait, for days if need be: one group of
processes lasts for the whole recipe, and trainings use it.
"""

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, Literal, NamedTuple, TypeVar

from medar.errors import MedarError

T = TypeVar("T")

PATIENCE = timedelta(days=14)
"""How long a process waits for the first one to prepare, encode or judge."""


class _Word(NamedTuple):
    """What the first process tells the others."""

    value: Any = None
    leave: int | None = None
    """The exit code of those that are to end."""


class Team:
    """This process among the others."""

    def __init__(self, first: bool = True) -> None:
        self.first = first

    def tell(self, work: Callable[[], T]) -> T:
        """Do something in the first process; all get the result, once it is there.

        Raises:
            SystemExit: in the others, where the work failed in the first.
        """
        from medar.training.distributed import all_gather_object

        if not self.first:
            word: _Word = all_gather_object(None)[0]
            if word.leave is not None:
                raise SystemExit(word.leave)
            return word.value  # type: ignore[no-any-return]
        try:
            value = work()
        except BaseException as error:
            with contextlib.suppress(RuntimeError):  # those who wait may be gone already
                all_gather_object(_Word(leave=_exit_code(error)))
            raise
        all_gather_object(_Word(value=value))
        return value


@contextlib.contextmanager
def together(device: Literal["auto", "cpu", "cuda"]) -> Iterator[Team]:
    """The processes of this run, which can talk inside the block; just one without torchrun.

    Args:
        device: where trainings run.
    """
    import torch

    from medar.training.distributed import current_ranks, process_group

    ranks = current_ranks()
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    where = (
        torch.device("cuda", ranks.local_rank)
        if cuda and ranks.world_size > 1
        else torch.device("cpu")
    )
    with process_group(ranks, where, PATIENCE):
        yield Team(ranks.is_rank_zero)


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if isinstance(error, MedarError) else 1
