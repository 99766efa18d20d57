"""Checkpoint files: written whole or not at all, read without running code, old ones removed.

`OUT/checkpoints/step-00000500.pt` holds all that a run needs to go on exactly; the newest one is
gone on from. `best.pt` is the one with the best evaluation, linked rather than copied where the
file system can.
"""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from medar.errors import MedarError, one_line
from medar.files import atomic_path, remove_temporaries

VERSION = 2
"""Of what a checkpoint holds."""

_NAME = re.compile(r"step-(\d+)\.pt")


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they are; made at the first save.
        keep: newest ones that stay, besides the best.
    """

    def __init__(self, folder: Path, keep: int = 1) -> None:
        self.folder = folder
        self.keep = keep
        self.best = folder / "best.pt"

    def all(self) -> dict[int, Path]:
        """The checkpoints by step, the newest last."""
        found = {p: _NAME.fullmatch(p.name) for p in self.folder.glob("step-*.pt")}
        return dict(sorted((int(match[1]), path) for path, match in found.items() if match))

    def last(self) -> Path | None:
        """The newest checkpoint."""
        return next(reversed(self.all().values()), None)

    def save(self, step: int, content: dict[str, Any], *, best: bool) -> Path:
        """Write a checkpoint, then remove those that are no longer kept.

        Raises:
            MedarError: the disk is full; what was there before is there still.
        """
        path = self.folder / f"step-{step:08d}.pt"
        try:
            with atomic_path(path) as temporary:
                torch.save({"version": VERSION, **content}, temporary)
            if best:
                self._mark_best(path)
        except (OSError, RuntimeError) as error:
            # torch's own writer reports a full disk as a RuntimeError.
            raise MedarError(
                f"{path}: the checkpoint cannot be written ({one_line(error)}); free some space "
                "and run the same command again"
            ) from error
        for old in list(self.all().values())[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def forget_after(self, step: int) -> None:
        """Remove what a run left that now goes on from an earlier step."""
        remove_temporaries(self.folder)
        for later, path in self.all().items():
            if later > step:
                path.unlink(missing_ok=True)

    def _mark_best(self, path: Path) -> None:
        with atomic_path(self.best) as temporary:
            temporary.unlink()
            try:
                os.link(path, temporary)
            except OSError:  # a file system without links
                shutil.copyfile(path, temporary)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; only tensors and plain values are accepted.

    Raises:
        MedarError: the file is absent, damaged, or of another version.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise MedarError(f"{path}: there is no such checkpoint") from error
    except Exception as error:  # the unpickler stumbles over damage in many ways
        raise MedarError(f"{path}: not a readable checkpoint ({one_line(error)})") from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise MedarError(f"{path}: not a checkpoint of version {VERSION}, which this medar reads")
    return content
