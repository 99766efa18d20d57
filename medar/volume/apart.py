"""Reading files in a process of its own: where a library ends it, one file is lost, not the run.

The process starts with the first call and serves all later ones; a new one follows it if it dies.
It is a plain interpreter that imports no script of the user's, so that scripts need no main guard.
"""

import atexit
import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from medar.errors import MedarError

R = TypeVar("R")

PIPE_BYTES = 1 << 20
"""Of the pipe that answers come through."""

_COMMAND = "import sys; sys.path[:] = {path!r}; from medar.volume.apart import serve; serve()"


def run_apart(path: Path, function: Callable[..., R], *args: Any, **kwargs: Any) -> R:
    """`function(*args, **kwargs)` in the process that reads files.

    Args:
        path: the file, which an error names.
        function: at the top level of a module.
        args: picklable.
        kwargs: picklable.

    Raises:
        MedarError: `function` raised it; or the process died.
        Exception: whatever else `function` raised.

    Warns:
        UserWarning: what `function` warned of.
    """
    if _here:
        return function(*args, **kwargs)
    answer, error, warned = _process.ask(path, (_current_folder(), function, args, kwargs))
    for message in warned:
        warnings.warn(message, stacklevel=2)
    if error is not None:
        raise error
    result: R = answer
    return result


_here = False


def stay_here() -> None:
    """Read files in this process from now on: it is one whose death costs one case only."""
    global _here
    _here = True


def _current_folder() -> str | None:
    """That of this process, which relative paths start from; None if it was deleted."""
    try:
        return str(Path.cwd())
    except OSError:
        return None


def serve() -> None:
    """Answer calls on standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group
    stay_here()
    # What libraries print must not get among the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            folder, function, args, kwargs = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        if folder is not None:
            with contextlib.suppress(OSError):  # the function then names the file that it misses
                os.chdir(folder)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            value, error = None, None
            try:
                value = function(*args, **kwargs)
            except Exception as raised:
                error = raised
        answer = value, error, [one.message for one in caught]
        with contextlib.suppress(BrokenPipeError):
            pickle.dump(answer, answers, protocol=5)
            answers.flush()


class _Process:
    """The process, and the pipes to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def ask(self, path: Path, call: Any) -> Any:
        with self._lock:
            child = self._started()
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                pickle.dump(call, child.stdin, protocol=5)
                child.stdin.flush()
                return pickle.load(child.stdout)
            except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
                raise MedarError(f"{path}: {self._how_it_died()}") from error
            except BaseException:
                self.end()  # Ctrl-C, for example: its answer would be taken for another one
                raise

    def _started(self) -> "subprocess.Popen[bytes]":
        # After a fork the process is the parent's.
        if self._child is None or self._owner != os.getpid():
            if self._child is not None:
                self._child.returncode = 0  # not to be waited for here
            command = _COMMAND.format(path=[str(Path(entry).absolute()) for entry in sys.path])
            self._child = subprocess.Popen(
                [sys.executable, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            self._owner = os.getpid()
            _enlarge(self._child.stdout)
        return self._child

    def _how_it_died(self) -> str:
        assert self._child is not None
        code = self._child.wait()
        self.end()
        if code == -signal.SIGKILL:
            return "the process that read it was killed, perhaps for lack of memory"
        if code < 0:
            name = signal.Signals(-code).name
            return f"damaged: it crashed the library that decodes it ({name}); get the file again"
        return f"the process that was to read it ended with exit code {code}"

    def end(self) -> None:
        """End the process, if this one started it."""
        child, self._child = self._child, None
        if child is None or self._owner != os.getpid():
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _enlarge(pipe: Any) -> None:
    """Make a pipe as large as a slice, where the system can, so that fewer pieces are read."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


_process = _Process()
atexit.register(_process.end)
