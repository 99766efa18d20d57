"""The end of a recipe's command line: settings are read; plan, run, say what came out."""

from pathlib import Path

from medar.cli.output import print_json, print_pairs, print_table
from medar.pipeline.ledger import Ledger
from medar.pipeline.planning import Choice
from medar.pipeline.recipe import Recipe

PAGE = "report.html"


def carry_out(
    recipe: Recipe, choice: Choice, made: str, *, dry_run: bool = False, json: bool = False
) -> None:
    """Run a recipe, or print its plan.

    Args:
        recipe: all of it.
        choice: of its stages.
        made: what is below OUT at the end, as a sentence's beginning: "label maps are in maps".
        dry_run: print the plan, run nothing.
        json: print one JSON object instead of words.

    Raises:
        MedarError: what the recipe raises.
    """
    if dry_run:
        _print_plan(recipe, choice, json=json)
        return
    done = recipe.run(choice)
    if done:  # empty in the processes that only train
        _print_end(recipe.out, [step.stage.name for step in done], made, json=json)


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
    ledger = Ledger(out)
    entries = {name: entry for name in names if (entry := ledger.read(name)) is not None}
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
