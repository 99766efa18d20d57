"""Scripts in processes of their own that do not each import torch again.

A server process imports the libraries once, and every script runs in a fork of it: as isolated as a
new interpreter, except that imports have been made.
"""

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

LIBRARIES = [
    "torch._dynamo", "torch.distributed", "monai.losses", "skimage.metrics",
    "medar.recipes.segmentation", "medar.recipes.synthesis", "medar.segmentation.training",
]  # fmt: skip


class Ended(NamedTuple):
    """How a process ended."""

    returncode: int
    """Below 0, the number of the signal that killed it."""
    printed: str
    """Standard output and error."""


def forking() -> Any:
    """The multiprocessing context whose processes are forks of the server process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    return context


def run_scripts(*calls: tuple[object, ...], timeout: float) -> list[Ended]:
    """Run Python scripts side by side, as `python SCRIPT WORD ...` would.

    Args:
        calls: script and words of each process.
        timeout: seconds after which all are killed.
    """
    return _run(_serve, [([*map(str, call)], dict(os.environ)) for call in calls], timeout)


def run_connected(*call: object, timeout: float) -> list[Ended]:
    """Run a Python script as two connected processes, as torchrun would; see `run_scripts`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [{**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    return _run(_serve_connected, [([*map(str, call)], rank) for rank in ranks], timeout)


def _run(serve: Any, calls: list[tuple[list[str], dict[str, str]]], timeout: float) -> list[Ended]:
    context = forking()
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder, str(number)) for number in range(len(calls))]
        processes = [
            context.Process(target=serve, args=(*call, log))
            for call, log in zip(calls, logs, strict=True)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout)
            if process.is_alive():
                for one in processes:
                    one.kill()
                process.join()
        return [
            Ended(int(process.exitcode or 0), log.read_text())
            for process, log in zip(processes, logs, strict=True)
        ]


def _serve(call: list[str], environment: Mapping[str, str], log: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = call
    sys.path.insert(0, str(Path(call[0]).parent))
    runpy.run_path(call[0], run_name="__main__")


def _serve_connected(call: list[str], environment: Mapping[str, str], log: Path) -> None:
    """Ends at once: threads of gloo do not always let a process that tears them down end."""
    code = 1
    try:
        _serve(call, environment, log)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
