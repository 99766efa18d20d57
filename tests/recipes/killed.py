"""Runs the recipe with `kill -9` at three moments of a seeded list.

    python killed.py CONFIG DATA FOLDER

FOLDER/seconds.json says how long each stage of an undisturbed run took. Leaves FOLDER/killed and
FOLDER/outcome.json. A script: it forks a process for each run, after the libraries are loaded,
which is what takes longest in a tiny recipe.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import mlflow  # loaded here so that no run needs to
import monai.losses
import skimage.metrics
import torch

from medar.cli.main import main as medar
from medar.recipes.code import code_digests
from medar.recipes.synthesis import synthesis_recipe as synthesize

LOADED = (mlflow, monai.losses, skimage.metrics)
NAMES = (
    "prepare", "tokenizer", "detail", "tokens", "generator", "synthesize", "evaluate", "report",
)  # fmt: skip
KILLS, SEED = 3, 14


def main(config: str, data: str, folder: str) -> None:
    torch.set_num_threads(1)
    call = ["run", "synthesis", config, "--data", data, "--out"]
    code_digests(synthesize)  # of all modules once rather than in each process
    killed = Path(folder) / "killed"
    seconds = json.loads((Path(folder) / "seconds.json").read_text())
    done: dict[str, Any] = {}
    hits = 0
    for name, fraction in moments():
        delay = fraction * seconds[name]
        hits += run([*call, str(killed)], killed, name, delay) == -signal.SIGKILL
        now = {n: e for n in NAMES if (e := entry(killed, n))["status"] == "done"}
        assert {name: now[name] for name in done} == done, "a stage was done twice"
        done = now
    code = run([*call, str(killed), "--register", "tiny", "--alias", "champion"], killed)
    outcome = {"kills": hits, "code": code}
    (Path(folder) / "outcome.json").write_text(json.dumps(outcome))


def moments() -> list[tuple[str, float]]:
    """Stages, and fractions of their time, at which to kill; in order."""
    draw = random.Random(SEED)
    drawn = [(draw.randrange(len(NAMES)), draw.random()) for _ in range(KILLS)]
    return [(NAMES[index], fraction) for index, fraction in sorted(drawn)]


def entry(out: Path, name: str) -> dict[str, Any]:
    """The record of a stage."""
    path = out / "stages" / f"{name}.json"
    found: dict[str, Any] = {"status": "", "attempts": 0}
    return json.loads(path.read_text()) if path.exists() else found


def attempts(out: Path, names: tuple[str, ...]) -> int:
    """The number of started attempts of some stages together."""
    return sum(entry(out, name)["attempts"] for name in names)


def run(call: list[str], out: Path, name: str = "", delay: float = 0.0) -> int:
    """Run the recipe; if a stage is named, kill the run some time after it or a later one started.

    Returns:
        Its exit code, or the signal's number below 0.
    """
    watched = NAMES[NAMES.index(name) :] if name else ()
    before = attempts(out, watched)
    process = os.fork()
    if process == 0:
        try:
            medar(call)
        except SystemExit as end:
            os._exit(int(end.code or 0))
        finally:
            os._exit(70)
    begun = None
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if begun is None and attempts(out, watched) > before:
            begun = time.monotonic()
        if begun is not None and time.monotonic() - begun >= delay:
            os.kill(process, signal.SIGKILL)
        time.sleep(0.002)


if __name__ == "__main__":
    main(*sys.argv[1:])
