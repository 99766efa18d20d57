"""What the command lines of recipes share: their options; plan, run, say what came out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from medar.cli.output import print_json, print_pairs, print_table
from medar.recipes.planning import Choice
from medar.recipes.recipe import Recipe
from medar.records import Records

PAGE = "report.html"


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Call:
    """How a recipe is run."""

    until: str | None = None
    """The last stage to run."""
    from_: Annotated[str | None, Parameter(name="--from")] = None
    """The first stage to run; those before it must be done and unchanged."""
    force: Annotated[list[str] | None, Parameter(name="--force")] = None
    """A stage to run anew though nothing has changed, and with it those that need it if its result
    is another one; may be repeated."""
    dry_run: bool = False
    """Print the plan, with time and memory where they are known, and run nothing."""
    max_minutes: float | None = None
    """A budget for all stages together, of which each training gets a share."""
    register: str | None = None
    """Name in MLflow's registry that the recipe's last model becomes the next version of."""
    alias: str | None = None
    """What that version is called, such as champion; it takes the name from the one before."""
    untracked: bool = False
    """Leave MLflow out."""
    json: bool = False
    """Print one JSON object: out, stages, and at the end report, or with --dry-run the plan."""

    def tracking(self) -> dict[str, Any]:
        """The options of `Recipe` that are about MLflow."""
        return {"tracked": not self.untracked, "register": self.register, "alias": self.alias}

    def carry_out(self, recipe: Recipe, made: str) -> None:
        """Run the recipe, or print its plan.

        Args:
            recipe: all of it.
            made: what is below OUT at the end, as a sentence's beginning: "label maps are in maps".

        Raises:
            MedarError: what the recipe raises.
        """
        choice = Choice(first=self.from_, last=self.until, forced=tuple(self.force or ()))
        if self.dry_run:
            _print_plan(recipe, choice, json=self.json)
            return
        done = recipe.run(choice)
        if done:  # empty in the processes that only train
            _print_end(recipe.out, [step.stage.name for step in done], made, json=self.json)


CALL = Call()


def _print_plan(recipe: Recipe, choice: Choice, *, json: bool) -> None:
    steps = recipe.plan(choice)
    rows = list(zip(steps, recipe.estimates(steps), strict=True))
    if json:
        plan = [
            {"stage": s.stage.name, "action": s.action, "why": s.why, **vars(e)} for s, e in rows
        ]
        print_json({"out": recipe.out, "stages": plan})
        return
    print_table(
        ("stage", "", "time", "memory", "why"),
        ((s.stage.name, s.action, e.time, e.memory, s.why) for s, e in rows),
    )


def _print_end(out: Path, names: list[str], made: str, *, json: bool) -> None:
    records = Records(out)
    entries = {name: entry for name in names if (entry := records.read(name)) is not None}
    page = out / PAGE if "report" in entries else None  # else it is of an earlier run
    if json:
        said = {
            name: {"status": e.status, "seconds": e.seconds, "peak_mib": e.peak_mib, **e.facts}
            for name, e in entries.items()
        }
        print_json({"out": out, "stages": said, "report": page})
        return
    print_pairs(str(out), {name: f"{e.status}, {e.seconds:.0f} s" for name, e in entries.items()})
    if page is not None:
        print(f"read {page}; {made}")
