"""Damaged and hostile inputs: `python tests/fuzz.py --n 300 --seed 0`.

Each input is a mutated copy of a file that medar reads: NIfTI, NRRD, MetaImage, DICOM and its
segmentations, tables, manifests, plans, prepared data sets, model folders, tokens, recipes and
configurations. It is read
as a user would, in a worker process with limits on time and memory, which is replaced when it dies.
Counted and printed are:

crashes     the worker died, as of a segmentation fault
tracebacks  an exception other than `MedarError`, an exit code other than 0, 1 and 2, or anything on
            standard error that is not a line of medar's, as a library's warning
hangs       more than `SECONDS` of the worker's processor time, which other programs do not
            lengthen, or `WAITING` seconds altogether
blow-ups    more than `MEMORY` bytes above what the worker needed before; inputs are small
silent      a read that succeeds with other voxels, weights or tokens than the original's where the
            mutation touched only what a checksum covers, or cut off the end of a file of voxels

Other mutations may change what is read: a flipped bit of raw voxels or of an affine is not
distinguishable from another file. The exit code is 1 if anything was counted.
"""

import argparse
import contextlib
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from typing import Any

SECONDS, WAITING, MEMORY = 40.0, 400.0, 600 << 20
READY = "ready"
VOLUMES = ("NIfTI", "NRRD", "MetaImage")
FAULTS = ("crashes", "tracebacks", "hangs", "blow-ups", "silent")


def main() -> int:
    """Run the inputs and print the counts."""
    options = argparse.ArgumentParser(description="Read mutated files and count faults.")
    options.add_argument("--n", type=int, default=300, help="number of inputs")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--first", type=int, default=0, help="number of the first input")
    options.add_argument("--kind", default="", help="only one kind, such as NIfTI")
    options.add_argument("--show", action="store_true", help="print every input and its outcome")
    given = options.parse_args()
    counts: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    with (
        tempfile.TemporaryDirectory(prefix="medar-fuzz-") as folder,
        Worker(Path(folder)) as worker,
    ):
        for number in range(given.first, given.first + given.n):
            fault, text = worker.try_input(given.seed, number, given.kind)
            counts[fault] += 1
            outcomes["read" if not text else "refused"] += not fault
            if fault or given.show:
                print(f"{number} {fault or 'fine'}: {text or 'read'}", flush=True)
    found = ", ".join(f"{counts[fault]} {fault}" for fault in FAULTS)
    print(f"{given.n} inputs, seed {given.seed}: {found}; {outcomes['refused']} refused")
    return int(any(counts[fault] for fault in FAULTS))


class Worker:
    """A process that reads inputs one at a time; a context manager.

    Args:
        folder: for originals, copies and output.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log.txt"
        self._process: Any = None
        self._pipe: Any = None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def try_input(self, *about: int | str) -> tuple[str, str]:
        """Read an input of `make_input`: the fault or "", and what happened; "" if it was read."""
        if self._process is None or not self._process.is_alive():
            self._start()
        self._pipe.send(about)
        try:
            # First the original is read, with the imports that this needs.
            message = self._pipe.recv() if self._pipe.poll(180) else "timeout"
            if message != READY:
                sys.exit(f"an original cannot be read: {message} {self._tail()}")
            started, before = monotonic(), processor_time(self._process.pid)
            while monotonic() - started < WAITING:
                if self._pipe.poll(1):
                    fault, text = self._pipe.recv()
                    return fault, text
                if processor_time(self._process.pid) - before > SECONDS:
                    break
            fault = "hangs"
        except (EOFError, OSError):
            fault = "crashes"
        self._end()
        from fuzzing.inputs import make_input

        return fault, f"{make_input(self.folder / 'originals', *about)} {self._tail()}"

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")  # with the libraries that are loaded
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other, self.folder, self.log))
        self._process.start()
        other.close()
        try:
            ready = self._pipe.poll(180) and self._pipe.recv() == READY
        except EOFError:
            ready = False
        if not ready:
            sys.exit(f"the worker did not start: {self._tail()}")

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def _tail(self) -> str:
        return self.log.read_text(errors="replace")[-1500:] if self.log.exists() else ""


def serve(pipe: Connection, folder: Path, log: Path) -> None:
    """The worker: reads the inputs that come through a pipe, and answers with the outcome."""
    import faulthandler

    output = os.open(log, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    os.dup2(output, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    faulthandler.enable()
    show_foreign_warnings()
    from fuzzing.originals import make_originals

    from medar.volume.apart import stay_here

    stay_here()  # what a library does must happen to this process, which is watched
    if not (folder / "originals").exists():
        make_originals(folder / "originals")
    limit_memory()
    truths: dict[str, Any] = {}
    pipe.send(READY)
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            about = pipe.recv()
            os.ftruncate(output, 0)
            pipe.send(outcome(folder, log, about, truths, pipe))


def outcome(
    folder: Path, log: Path, about: Any, truths: dict[str, Any], pipe: Any
) -> tuple[str, str]:
    """Read an input; see `Worker.try_input`."""
    from fuzzing.inputs import copied, make_input

    from medar.errors import MedarError

    originals, target = folder / "originals", folder / "work" / "input"
    one = make_input(originals, *about)
    covered = one.kind.covers(one.original, one.original.read_bytes(), one.mutation)
    original = one.original
    key = f"{one.kind.folder} {original.name if one.kind.name in VOLUMES else original.suffix}"
    if key not in truths:
        try:
            truths[key] = one.kind.read(*untouched(originals, one, target))
        except Exception:
            pipe.send(f"{one}: {traceback.format_exc()}")
            raise
        os.ftruncate(sys.stderr.fileno(), 0)
    pipe.send(READY)
    path = copied(originals, one, target)
    before = resident(reset=True)
    error, found = "", None
    try:
        found = one.kind.read(target, path)
    except MedarError as refusal:
        error = str(refusal)
        if not error or len(error.splitlines()) > 1 or len(error) > 3000:
            return "tracebacks", f"{one}: an error that is not one line: {error[:3000]!r}"
    except MemoryError:
        return "blow-ups", f"{one}: {traceback.format_exc()[-1500:]}"
    except BaseException:
        return "tracebacks", f"{one}: {traceback.format_exc()[-3000:]}"
    sys.stdout.flush()
    sys.stderr.flush()
    printed = log.read_text(errors="replace")
    grown = resident() - before
    if grown > MEMORY or "llocate" in error + printed:
        return "blow-ups", f"{one}: {grown >> 20} MB more; {error} {printed[-500:]}"
    foreign = [line for line in printed.splitlines() if is_foreign(line)]
    if foreign:
        return "tracebacks", f"{one}: printed {foreign[0][:500]!r}"
    if covered and not error and found is not None and found != truths[key]:
        return "silent", f"{one}: from byte {one.mutation.first} on"
    return "", f"{one}: {error or next(iter(printed.splitlines()), '')[:300]}" if error else ""


def untouched(originals: Path, one: Any, target: Path) -> tuple[Path, Path]:
    """The folder of an input, and its file, without the mutation."""
    from dataclasses import replace

    from fuzzing.inputs import copied

    mutation = replace(one.mutation, content=one.original.read_bytes())
    return target, copied(originals, replace(one, mutation=mutation), target)


def show_foreign_warnings() -> None:
    """Print warnings of libraries in another form than those of medar."""
    import warnings

    import medar.cli.main as command_line

    def show(message: Warning | str, category: type[Warning], filename: str, *_: Any) -> None:
        own = issubclass(category, UserWarning) and "site-packages" not in filename
        start = "medar: warning" if own else f"warning of a library, {category.__name__}"
        print(f"{start}: {' '.join(str(message).split())}", file=sys.stderr)

    command_line._show_warning = show
    warnings.showwarning = show  # type: ignore[assignment]
    warnings.simplefilter("always")


def is_foreign(line: str) -> bool:
    """Whether a line on standard error is not medar's."""
    return bool(line.strip()) and not line.startswith("medar: ")


def processor_time(process: int) -> float:
    """Seconds of processor time of a process; 0 where Linux does not say."""
    path = Path(f"/proc/{process}/stat")
    if not path.exists():
        return 0.0
    user, system = path.read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def resident(*, reset: bool = False) -> int:
    """Peak memory of this process in bytes since the last reset; 0 where Linux does not say."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists():
        return 0
    if reset:
        clear.write_text("5")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def limit_memory() -> None:
    """Let allocations beyond a few times the limit fail."""
    import resource

    data = next(
        (int(line.split()[1]) << 10 for line in Path("/proc/self/status").read_text().splitlines()
         if line.startswith("VmData")), 0,
    )  # fmt: skip
    resource.setrlimit(resource.RLIMIT_DATA, (data + 4 * MEMORY, data + 4 * MEMORY))


if __name__ == "__main__":
    sys.exit(main())
