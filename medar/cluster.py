"""Work on a Dask cluster: inside `use_cluster`, `medar.parallel.run_parallel` runs on its workers.

A worker is a process that does one thing at a time, on any machine that has the same files under
the same paths; that it fits is checked first. How work is sent is in `medar.cluster_work`.
"""

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

from medar.cluster_work import JOIN, run_on_cluster
from medar.devices import NVIDIA
from medar.errors import MedarError, one_line
from medar.files import TEMPORARY
from medar.parallel import default_workers, elsewhere
from medar.version import __version__

if TYPE_CHECKING:
    from distributed import Client, SpecCluster

LOCAL = re.compile(r"local:([1-9]\d{0,3})")
ADDRESS = re.compile(r"((tcp|tls|ws|wss|ucx)://)?(?!local:)[^/]+:\d{1,5}")

CONNECT = 10.0
"""Seconds to wait for a scheduler."""


@contextlib.contextmanager
def use_cluster(
    address: str | None, *shared: str | Path, out: str | Path | None = None
) -> Iterator[None]:
    """Inside the block, work on many cases is done by the workers of a cluster.

    Args:
        address: of a Dask scheduler, such as tcp://host:8786; its scheduler file, a .json; or
            "local:N", for N workers on this machine while the block lasts. None: no cluster.
        shared: existing paths that workers must see.
        out: the folder that they must be able to write to, existing or not.

    Raises:
        MedarError: Dask is not installed, the scheduler cannot be reached or has no worker, or
            workers do not fit: they have another version of medar, several threads, or other files.
    """
    if address is None:
        yield
        return
    with _connected(address) as client:
        _check_workers(client, address, shared, out)
        with elsewhere(partial(run_on_cluster, client, address)):
            yield


@contextlib.contextmanager
def _connected(address: str) -> "Iterator[Client]":
    try:
        from distributed import Client
    except ImportError as error:
        raise MedarError(
            f"--cluster {address}: needs Dask; install it with pip install 'medar[cluster]'"
        ) from error
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet())
        where: dict[str, Any] = {"address": address}
        if local := LOCAL.fullmatch(address):
            where = {"address": stack.enter_context(_local_cluster(int(local[1])))}
        elif address.endswith(".json") and Path(address).exists():
            where = {"scheduler_file": address}
        elif not ADDRESS.fullmatch(address):
            raise MedarError(
                f"--cluster {address}: must be the address of a Dask scheduler, such as "
                "tcp://host:8786, its scheduler file, or local:N for N workers on this machine"
            )
        try:
            client = Client(**where, timeout=CONNECT, set_as_default=False)
        except (OSError, ValueError, TypeError) as error:
            raise MedarError(
                f"--cluster {address}: no scheduler can be reached ({one_line(error)}); start one "
                "with `dask scheduler` and give its address, such as tcp://host:8786"
            ) from error
        stack.callback(client.close, timeout=CONNECT / 2)
        yield client


def _local_cluster(workers: int) -> "SpecCluster":
    """A cluster on this machine, without limits of memory and without a dashboard."""
    from distributed import Nanny, Scheduler, SpecCluster

    return SpecCluster(
        scheduler={
            "cls": Scheduler,
            "options": {
                "host": "127.0.0.1",
                "dashboard": False,
                "dashboard_address": ":0",
                "allowed_failures": 0,
            },
        },
        workers={
            index: {
                "cls": Nanny,
                "options": {
                    "nthreads": 1,
                    "memory_limit": None,
                    "env": worker_environment(index, workers),
                    "silence_logs": logging.CRITICAL,
                },
            }
            for index in range(workers)
        },
        silence_logs=logging.CRITICAL,
    )


def worker_environment(index: int, workers: int) -> dict[str, str]:
    """Environment of a worker of this machine: its part of the processors, and one GPU.

    OMP_NUM_THREADS of this process is kept, if it is set.

    Args:
        index: of the worker.
        workers: on this machine.
    """
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, default_workers() // workers))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        cards = [str(number) for number, _ in enumerate(NVIDIA.glob("gpus/*"))]
    else:
        cards = [card for card in visible.split(",") if card]
    gpu = {"CUDA_VISIBLE_DEVICES": cards[index % len(cards)]} if cards else {}
    return {**dict.fromkeys(names, threads), **gpu}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing from Dask's loggers on standard error: what goes wrong is raised in one line."""
    loggers = [
        logger
        for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger)
        if name.partition(".")[0] in ("distributed", "tornado")
    ]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _check_workers(
    client: "Client", address: str, shared: Sequence[str | Path], out: str | Path | None
) -> None:
    try:
        client.wait_for_workers(1, timeout=JOIN)
    except TimeoutError as error:
        raise MedarError(
            f"--cluster {address}: the scheduler has no workers after {JOIN:g} s; start some with "
            "`dask worker --nthreads 1`"
        ) from error
    with _probe(out) as probe:
        paths = [str(Path(path).absolute()) for path in (Path.cwd(), *shared, *probe)]
        try:
            found = client.run(_look(), paths)
        except Exception as error:
            raise MedarError(
                f"--cluster {address}: the workers cannot run this version of medar and Python "
                f"({one_line(error)})"
            ) from error
    for worker, (version, threads, missing) in found.items():
        if version != __version__:
            theirs = "no medar" if version is None else f"medar {version}"
            raise MedarError(
                f"--cluster {address}: {worker} has {theirs}, this is medar {__version__}; install "
                "the same version everywhere"
            )
        if threads != 1:
            raise MedarError(
                f"--cluster {address}: {worker} has {threads} threads; start workers with "
                "--nthreads 1, as many as needed with --nworkers"
            )
        if missing:
            raise MedarError(
                f"--cluster {address}: {worker} does not see {missing[0]}; data and OUT must be on "
                "a file system that all machines share, under the same path"
            )


def _look() -> Callable[..., tuple[str | None, int, list[str]]]:
    """What a worker knows; sent as code, since its medar may have another version or be absent."""

    def look(paths: list[str], dask_worker: Any) -> tuple[str | None, int, list[str]]:
        import importlib
        from pathlib import Path

        try:
            version = importlib.import_module("medar.version").__version__
        except ImportError:
            version = None
        return version, dask_worker.state.nthreads, [p for p in paths if not Path(p).exists()]

    return look


@contextlib.contextmanager
def _probe(out: str | Path | None) -> Iterator[list[Path]]:
    """A file in a folder, or in the nearest one above that exists; none if it is read-only."""
    with contextlib.ExitStack() as stack:
        found = []
        if out is not None:
            absolute = Path(out).absolute()
            folder = next(one for one in (absolute, *absolute.parents) if one.is_dir())
            with contextlib.suppress(OSError):
                file = stack.enter_context(NamedTemporaryFile(prefix=TEMPORARY, dir=folder))
                found.append(Path(file.name))
        yield found
