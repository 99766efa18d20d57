"""Recipes of stages that only write a file, and note in a list that they ran."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from medar.files import file_digest
from medar.recipes.planning import Choice, Step
from medar.recipes.recipe import Recipe
from medar.recipes.stage import Facts, Outlook, Stage, Work
from medar.settings import STRICT


@dataclass(frozen=True, kw_only=True)
class FakeSettings:
    """Settings of the recipe as a whole."""

    __pydantic_config__: ClassVar[Any] = STRICT

    word: str = "hello"


class Kitchen:
    """Makes recipes of three stages, `first`, `second`, `third`; each needs those before it.

    Attributes:
        ran: names of the stages that ran, in order.
        minutes: what each was given of a budget.
        values: the settings of each stage, which may be changed between runs.
        fails: an error that a stage raises, by name, after it has begun its file.
        options: more of the recipe's own.
        acts: what a stage does besides, by name, once.
        digests: of the data that `first` reads.
        content: whether stages take the digest of what they left.
        retelling: the stage that tells how the others were made.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.ran: list[str] = []
        self.minutes: dict[str, float | None] = {}
        self.values: dict[str, dict[str, Any]] = {"first": {}, "second": {"size": 1}, "third": {}}
        self.fails: dict[str, BaseException] = {}
        self.acts: dict[str, Callable[[], None]] = {}
        self.digests = {"the content of files": "abc"}
        self.content = False
        self.retelling = ""
        self.budget: float | None = None
        self.tracked = False
        self.options: dict[str, Any] = {}

    def recipe(self) -> Recipe:
        names = list(self.values)
        stages = tuple(self._stage(name, names[:place]) for place, name in enumerate(names))
        return Recipe(
            name="fake",
            out=self.out,
            settings=FakeSettings(),
            stages=stages,
            max_minutes=self.budget,
            device="cpu",
            **{"tracked": self.tracked, **self.options},
        )

    def run(self, **choice: Any) -> list[str]:
        """Run the recipe; the names of the stages that ran this time."""
        self.ran.clear()
        self.recipe().run(Choice(**choice))
        return list(self.ran)

    def plan(self, **choice: Any) -> list[Step]:
        return self.recipe().plan(Choice(**choice))

    def actions(self, **choice: Any) -> str:
        """Name and action of each step: "first skip, second run"."""
        return ", ".join(f"{step.stage.name} {step.action}" for step in self.plan(**choice))

    def _stage(self, name: str, needs: list[str]) -> Stage:
        def work(given: Work) -> Facts:
            self.ran.append(name)
            self.minutes[name] = given.minutes
            file = given.folder / "result"
            before = file.read_text() if file.exists() else ""
            file.write_text(before + name[0])
            if name in self.acts:
                self.acts.pop(name)()
            if name in self.fails:
                raise self.fails.pop(name)
            return {"letters": len(before) + 1, "word": name}

        return Stage(
            name=name,
            folder=f"{name}-folder",
            files=("page.html",) if name == "page" else (),
            run=work,
            rooms=("errors",),
            settings=self.values[name],
            needs=tuple(needs),
            inputs=(lambda: self.digests) if name == "first" else None,
            result=(lambda folder: file_digest(folder / "result")) if self.content else None,
            retells=name == self.retelling,
            training=name == "second",
            model="generator" if name == "second" and self.options else None,
            share=2.0 if name == "second" else 1.0,
            outlook=(lambda: Outlook(steps=100, parameters=10**6)) if name == "second" else Outlook,
        )
