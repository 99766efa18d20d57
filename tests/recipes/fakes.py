"""Recipes whose stages only write a file and record in a list that they ran."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from medar.files import file_digest
from medar.recipes.plan import StageSelection, Step
from medar.recipes.recipe import Recipe
from medar.recipes.stage import Facts, Stage, StageContext, TrainingEstimate
from medar.settings import settings


@settings
class FakeSettings:
    """Settings of the recipe as a whole."""

    word: str = "hello"


class FakeRecipe:
    """Builds recipes of three stages, `first`, `second`, `third`; each depends on the earlier ones.

    Attributes:
        ran: names of the stages that ran, in order.
        minutes: time limit of each stage that ran.
        values: the settings of each stage, which may be changed between runs.
        fails: by stage name, an error that the stage raises once after it started its file.
        acts: by stage name, a function that the stage calls once.
        digests: of the data that `first` reads.
        content: whether stages compute the digest of their output.
        describing: the stage that describes how the others were built.
        options: further options of the recipe.
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
        self.describing = ""
        self.budget: float | None = None
        self.tracked = False
        self.options: dict[str, Any] = {}

    def recipe(self) -> Recipe:
        names = list(self.values)
        stages = tuple(self._stage(name, names[:index]) for index, name in enumerate(names))
        return Recipe(
            name="fake",
            out=self.out,
            settings=FakeSettings(),
            stages=stages,
            max_minutes=self.budget,
            device="cpu",
            **{"tracked": self.tracked, **self.options},
        )

    def run(self, **selection: Any) -> list[str]:
        """Run the recipe and return the names of the stages that ran."""
        self.ran.clear()
        self.recipe().run(StageSelection(**selection))
        return list(self.ran)

    def plan(self, **selection: Any) -> list[Step]:
        return self.recipe().plan(StageSelection(**selection))

    def actions(self, **selection: Any) -> str:
        """Name and action of each step: "first skip, second run"."""
        return ", ".join(f"{step.stage.name} {step.action}" for step in self.plan(**selection))

    def _stage(self, name: str, needs: list[str]) -> Stage:
        def work(context: StageContext) -> Facts:
            self.ran.append(name)
            self.minutes[name] = context.minutes
            file = context.folder / "result"
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
            settings=self.values[name],
            needs=tuple(needs),
            inputs=(lambda: self.digests) if name == "first" else None,
            result=(lambda folder: file_digest(folder / "result")) if self.content else None,
            describes_needs=name == self.describing,
            training=TrainingEstimate(steps=100) if name == "second" else None,
            model="generator" if name == "second" and self.options else None,
            budget_weight=2.0 if name == "second" else 1.0,
        )
