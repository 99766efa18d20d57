"""`run_on_cluster`: sends items to the workers of a Dask cluster and yields their outcomes.

Items are sent as workers become free, so that a slow worker gets fewer. Outcomes are those of one
machine: whatever resumes or is set aside there does so here.
"""

import contextlib
import pickle
import queue
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medar.errors import MedarError, one_line
from medar.parallel import Attempt, Outcome, as_outcome, attempt

if TYPE_CHECKING:
    from distributed import Client, Future

    Warned = tuple[str, type[Warning]]

JOIN = 60.0
"""Seconds to wait for a first worker or, if all have gone, for another."""

IN_FLIGHT = 2
"""Items per worker that are sent ahead: one in work, one that waits there."""

MOMENT = 0.5
"""Seconds of work that are sent together, so that small items take not much longer than here."""

LOOK = 2.0
"""Seconds between looks at the workers that are there."""


def run_on_cluster(
    client: "Client", address: str, function: Callable[[Any], Any], items: Sequence[Any]
) -> Iterator[Outcome[Any, Any]]:
    """`run_parallel` on a cluster; items whose worker died are tried once more, one by one."""
    import dask

    lost = MedarError(
        f"--cluster {address}: the scheduler is gone; what is finished is kept: start it and run "
        "the same command again"
    )
    code, folder, seconds = pickle.dumps(function), str(Path.cwd()), float("inf")
    waiting, alone = list(range(len(items)))[::-1], list[int]()
    again: set[int] = set()
    running: dict[Future, list[int]] = {}
    done: queue.SimpleQueue[Future] = queue.SimpleQueue()
    watch = _Watch(client, address)
    try:
        while waiting or alone or running:
            most = IN_FLIGHT * max(1, watch.workers())
            # One at a time: an item that kills its worker takes those that wait there with it.
            while (waiting and len(running) < most) or (alone and not waiting and not running):
                left = waiting if waiting else alone
                size = group_size(len(waiting), most, seconds) if waiting else 1
                group = [left.pop() for _ in range(size)]
                sent = pickle.dumps([items[index] for index in group])
                with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TiB"}):
                    future = client.submit(_work, code, sent, folder, pure=False, retries=0)
                running[future] = group
                future.add_done_callback(done.put)
            try:
                future = done.get(timeout=LOOK)
            except queue.Empty:
                continue
            group = running.pop(future)
            answer = _answer(future)
            if answer is not None:
                results, elapsed = answer
                seconds = elapsed / len(group)
                for index, (result, warned) in zip(group, results, strict=False):
                    for message, category in warned:
                        warnings.warn(message, category, stacklevel=2)
                    yield as_outcome(items[index], result)
            elif future.status != "error":
                raise lost
            elif _died(future) and not again & set(group):
                again |= set(group)
                alone += group
            else:
                reason = _reason(future)
                yield from (Outcome(item=items[index], error=reason) for index in group)
    except OSError as error:
        if client.status == "running":
            raise
        raise lost from error
    finally:
        if running and client.status == "running":
            client.cancel(list(running), force=True)


def group_size(left: int, most: int, seconds: float) -> int:
    """Number of items to send together: what takes a moment, and leaves enough for other workers.

    Args:
        left: items to send.
        most: groups that are sent ahead.
        seconds: that an item takes.
    """
    return max(1, min(left // (2 * most), int(MOMENT / max(seconds, 1e-3))))


class _Watch:
    """The number of workers, looked up every now and then.

    Args:
        client: of the cluster.
        address: for messages.
    """

    def __init__(self, client: "Client", address: str) -> None:
        self.client, self.address = client, address
        self._count, self._looked, self._seen = 0, -LOOK, time.monotonic()

    def workers(self) -> int:
        """Their number.

        Raises:
            MedarError: there have been none for a minute.
            OSError: the scheduler is gone.
        """
        now = time.monotonic()
        if self.client.status != "running":
            raise ConnectionError
        if now - self._looked >= LOOK:
            self._count, self._looked = len(self.client.nthreads()), now
            if self._count:
                self._seen = now
        if now - self._seen > JOIN:
            raise MedarError(
                f"--cluster {self.address}: all workers are gone; what is finished is kept: start "
                "some with `dask worker --nthreads 1` and run the same command again"
            )
        return self._count


def _work(
    code: bytes, sent: bytes, folder: str
) -> "tuple[list[tuple[Attempt[Any], list[Warned]]], float]":
    """On a worker: the attempts at some items, made in the folder of the command, and seconds.

    With each attempt come the warnings that it gave.
    """
    began, results = time.monotonic(), []
    try:
        with contextlib.chdir(folder):
            loaded = attempt(_loaded, code)
            if loaded.value is None:  # every item would fail
                return [(replace(loaded, fatal=True), [])], 0.0
            function, items = loaded.value, pickle.loads(sent)
            for item in items:
                with warnings.catch_warnings(record=True) as caught:
                    result = attempt(function, item)
                results.append((result, [(str(one.message), one.category) for one in caught]))
                if result.fatal:
                    break
    except OSError as error:
        reason = f"{folder}: a worker does not see this folder ({error.strerror})"
        results = [(Attempt(error=reason, fatal=True), [])]
    return results, time.monotonic() - began


@lru_cache(maxsize=4)
def _loaded(code: bytes) -> Callable[[Any], Any]:
    from medar.volume.interpolation import use_threads

    use_threads(1)
    function: Callable[[Any], Any] = pickle.loads(code)
    return function


def _answer(future: "Future") -> Any:
    """The result of a task; None if it failed, or if its worker died before it was fetched."""
    from distributed import KilledWorker

    if future.status != "finished":
        return None
    try:
        return future.result()
    except KilledWorker:
        return None


def _died(future: "Future") -> bool:
    from distributed import KilledWorker

    return isinstance(future.exception(), KilledWorker)


def _reason(future: "Future") -> str:
    if _died(future):
        return "the workers that tried it died (killed, perhaps for lack of memory)"
    error = future.exception()
    return f"unexpected {type(error).__name__} on a worker: {one_line(error)}"
