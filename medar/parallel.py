"""The same work on many cases in several processes, where one bad case does not stop the others.

Each outcome is a value or an error. When a worker dies, killed for its memory for example, only its
own case is lost: the cases that were in progress are tried again one at a time. Inside `elsewhere`
the work is done in another place, such as a cluster (`medar.cluster`), with the same outcomes.
"""

import contextlib
import errno
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from medar.errors import MedarError

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Outcome(Generic[T, R]):
    """The outcome of one item: `value`, or `error` in one line and, for a defect, its `trace`."""

    item: T
    value: R | None = None
    error: str | None = None
    trace: str | None = None

    def result(self) -> R:
        """The value.

        Raises:
            MedarError: the item's error.
            RuntimeError: a defect, with its trace.
        """
        if self.trace is not None:
            raise RuntimeError(f"{self.error}\n{self.trace}")
        if self.error is not None:
            raise MedarError(self.error)
        return self.value  # type: ignore[return-value]


Runner = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Outcome[Any, Any]]]
"""Does what `run_parallel` does, in another place."""

_runner: ContextVar[Runner | None] = ContextVar("runner", default=None)


@contextlib.contextmanager
def elsewhere(runner: Runner) -> Iterator[None]:
    """Inside the block `run_parallel` calls `runner` instead of starting processes."""
    before = _runner.set(runner)
    try:
        yield
    finally:
        _runner.reset(before)


def is_elsewhere() -> bool:
    """Whether `run_parallel` works in another place, where nothing of this process is known."""
    return _runner.get() is not None


def default_workers() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_parallel(
    function: Callable[[T], R], items: Sequence[T], *, workers: int
) -> Iterator[Outcome[T, R]]:
    """Apply `function` to each item and yield outcomes as they complete.

    At most `workers` items are in memory at a time. With one worker, or one item, everything runs
    in this process. Inside `elsewhere` the place is another, and `workers` has no effect.

    Args:
        function: picklable, defined at the top level of a module.
        items: picklable.
        workers: number of processes.

    Raises:
        MedarError: the disk is full; or worker processes cannot start, because the script does its
            work when it is imported.
    """
    if workers < 1:
        raise MedarError(f"workers must be at least 1, got {workers}")
    if (runner := _runner.get()) is not None:
        yield from runner(function, items)
        return
    if workers == 1 or len(items) <= 1:
        yield from run_here(function, items)
        return
    survivors: list[T] = []
    yield from _pooled(function, items, min(workers, len(items)), survivors)
    for item in survivors:
        again: list[T] = []
        yield from _pooled(function, [item], 1, again, proven=True)
        for lost in again:
            yield Outcome(
                item=lost,
                error="the worker process died (killed, perhaps for lack of memory); "
                "try fewer workers",
            )


def run_here(function: Callable[[T], R], items: Sequence[T]) -> Iterator[Outcome[T, R]]:
    """`run_parallel` in this process, also inside `elsewhere`: for work of a moment."""
    for item in items:
        yield as_outcome(item, attempt(function, item))


def _pooled(
    function: Callable[[T], R],
    items: Sequence[T],
    workers: int,
    lost: list[T],
    proven: bool = False,
) -> Iterator[Outcome[T, R]]:
    """Outcomes from a pool; items in progress when a worker died are added to `lost`.

    Before an item is blamed, it is checked that workers start at all, unless that is `proven`.
    """
    waiting = list(reversed(items))
    running: dict[Future[Attempt[R]], T] = {}
    pool = _new_pool(workers)
    try:
        while waiting or running:
            broken = False
            while waiting and len(running) < workers and not broken:
                try:
                    running[pool.submit(attempt, function, waiting[-1])] = waiting[-1]
                    waiting.pop()
                except BrokenProcessPool:
                    broken = True
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                item = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    lost.append(item)
                    broken = True
                    continue
                proven = True
                yield as_outcome(item, result)
            if broken:
                lost.extend(running.values())
                running.clear()
                pool.shutdown(wait=False, cancel_futures=True)
                pool = _new_pool(workers)
                if not proven:
                    _try_start(pool)
                    proven = True
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _new_pool(workers: int) -> ProcessPoolExecutor:
    # Spawned, not forked: a fork inherits the locks of threads that libraries started here.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_quiet_worker)


def _try_start(pool: ProcessPoolExecutor) -> None:
    try:
        pool.submit(int).result()
    except BrokenProcessPool as error:
        raise MedarError(
            "worker processes cannot start: each imports the script that runs; put its calls under "
            "`if __name__ == '__main__':`, or pass workers=1"
        ) from error


@dataclass(frozen=True)
class Attempt(Generic[R]):
    """What a worker sends back: an `Outcome` without its item."""

    value: R | None = None
    error: str | None = None
    trace: str | None = None
    fatal: bool = False
    """Whether every other item would fail too: the error is raised."""


def attempt(function: Callable[[T], R], item: T) -> Attempt[R]:
    """`function(item)`, with every error turned into text that can be sent between processes."""
    try:
        return Attempt(value=function(item))
    except MedarError as error:
        return Attempt(error=str(error))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            full = f"{error.filename or 'output'}: {error.strerror}"
            advice = "free some space and run the same command again"
            return Attempt(error=f"{full}; {advice}", fatal=True)
        return Attempt(error=str(error), trace=traceback.format_exc())
    except MemoryError as error:
        reason = f" ({error})" if str(error) else ""
        return Attempt(error=f"not enough memory{reason}; try fewer workers, or fewer voxels")
    except Exception as error:
        message = f"unexpected {type(error).__name__}: {error}"
        return Attempt(error=" ".join(message.split()), trace=traceback.format_exc())


def as_outcome(item: T, result: Attempt[R]) -> Outcome[T, R]:
    """An attempt as the outcome of its item.

    Raises:
        MedarError: the attempt is fatal.
    """
    if result.fatal:
        raise MedarError(result.error or "")
    return Outcome(item=item, value=result.value, error=result.error, trace=result.trace)


def _quiet_worker() -> None:
    # Ctrl-C reaches the whole process group; only the parent handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()
    from medar.volume.apart import stay_here
    from medar.volume.interpolation import use_threads

    use_threads(1)
    stay_here()  # a worker that dies costs its own case only


def _follow_parent() -> None:
    """End this process with its parent, without which it would wait for work forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
