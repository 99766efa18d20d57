"""The environment of a run: versions, hardware, and the git state of the source code."""

import os
import platform
import subprocess
from pathlib import Path

from medar.version import __version__

SOURCE = Path(__file__).resolve().parents[1]


def environment() -> dict[str, str]:
    """Versions of Python, torch and medar, the hardware, and the git state, as text by name."""
    import torch

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "medar": __version__,
        "hardware": _hardware(),
        "host": platform.node(),
        **git_state(SOURCE),
    }


def git_state(folder: Path) -> dict[str, str]:
    """The commit checked out in a folder, and whether tracked files differ from it.

    Empty if the folder is not a checkout, or if git is absent or refuses.
    """
    if not (folder / ".git").exists():
        return {}
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if not commit or changes is None:
        return {}
    return {"git.commit": commit, "git.dirty": "true" if changes else "false"}


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _hardware() -> str:
    import torch

    parts = [f"{os.cpu_count()} CPU cores ({platform.machine()})"]
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        parts = [f"{names.count(name)} x {name}" for name in dict.fromkeys(names)] + parts
    return ", ".join(parts)
