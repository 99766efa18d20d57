"""`Recipe`: stages in order. What is done is skipped, what was interrupted goes on.

What lies in its folder is in `medar.records`.

Under torchrun all processes run the same recipe; see `medar.recipes.team`.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from medar.errors import MedarError
from medar.files import exclusive
from medar.recipes.budget import expected_minutes
from medar.recipes.desk import Desk, last_run
from medar.recipes.estimates import Estimate, estimate
from medar.recipes.planning import Bases, Choice, Step, make_plan
from medar.recipes.stage import Stage
from medar.recipes.team import together
from medar.records import CONFIG_FILE, STAGES, Records


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Stages, and where they leave what they make."""

    name: str
    out: Path
    settings: Any
    """A settings dataclass, kept as OUT/config.yaml."""
    stages: tuple[Stage, ...]
    max_minutes: float | None = None
    """A budget for all stages together."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where trainings run."""
    tracked: bool = True
    """Tell MLflow."""
    register: str | None = None
    """A name in MLflow's registry, of which the last stage's model becomes the next version."""
    alias: str | None = None
    """What that version is called, such as "champion"."""

    def plan(self, choice: Choice) -> list[Step]:
        """What is to be done; nothing is written.

        Raises:
            MedarError: see `make_plan`.
        """
        self._check_folder()
        bases = Bases(self.stages, self.max_minutes)
        return make_plan(self.stages, Records(self.out), choice, bases)

    def estimates(self, steps: Sequence[Step]) -> list[Estimate]:
        """What each step takes, as far as that is known."""
        records = Records(self.out)
        given = expected_minutes(steps, self.stages, records, self.max_minutes)
        return [estimate(step, records, part) for step, part in zip(steps, given, strict=True)]

    def run(self, choice: Choice) -> list[Step]:
        """Do it.

        Returns:
            The steps that were done or skipped.

        Raises:
            MedarError: what a stage raises; or another process is at work in the folder.
            KeyboardInterrupt: SIGINT or SIGTERM came; the same call goes on.
        """
        self._check_folder()
        from medar.tracking.names import check_registration

        check_registration(self.register, self.alias, tracked=self.tracked)
        with contextlib.ExitStack() as stack:
            stack.enter_context(_terminable(self._go_on(choice)))
            team = stack.enter_context(together(self.device))
            # The first process alone locks the folder, plans, and writes records.
            team.tell(lambda: stack.enter_context(exclusive(self.out)))
            desk = Desk(self, team, choice)
            names = team.tell(desk.begin)
            with desk.whole():
                for name, action in names:
                    if action != "skip":
                        desk.do(name)
            return desk.steps

    def _check_folder(self) -> None:
        """Refuse a folder whose files a run would replace though they are not of this recipe."""
        if self.out.exists() and not self.out.is_dir():
            raise MedarError(f"{self.out}: is a file; --out names a folder")
        if (self.out / CONFIG_FILE).exists() and not (self.out / STAGES).exists():
            raise MedarError(
                f"{self.out}: holds a run of something else ({CONFIG_FILE}, no {STAGES}/); --out "
                "needs a folder of its own"
            )
        other = last_run(Records(self.out)).recipe
        if other not in (None, self.name):
            raise MedarError(
                f"{self.out}: holds a run of the recipe {other}, not {self.name}; --out needs a "
                "folder of its own"
            )

    @staticmethod
    def _go_on(choice: Choice) -> str:
        return f"the same command{' without --force' if choice.forced else ''} goes on from here"


@contextlib.contextmanager
def _terminable(words: str) -> Iterator[None]:
    """SIGTERM, which schedulers send, ends the block as Ctrl-C does; both say how to go on."""

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    own = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, end) if own else None
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(words) from None
    finally:
        if own:
            signal.signal(signal.SIGTERM, before)
