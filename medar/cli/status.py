"""`medar status`: what a recipe's run has done and has left."""

import shlex
from pathlib import Path

from medar.cli.output import print_json, print_table


def status(run: Path, /, *, json: bool = False) -> None:
    """Print which stages of a run are done, running and left, with times.

    Times of what is left are those of the trainings' limits, or of earlier runs in the same folder.

    Parameters
    ----------
    run
        The folder that was passed to the recipe as --out.
    json
        Print one JSON object: recipe, whether a process works, seconds left, each stage, and the
        verdict once all are done.
    """
    from medar.recipes.budget import duration
    from medar.recipes.status import run_status
    from medar.records import CONFIG_FILE
    from medar.report.folder import RunFolder
    from medar.report.run import find_verdict

    state = run_status(run)
    judged = find_verdict(RunFolder(run)) if state.done == len(state.stages) else None
    if json:
        stages = [vars(stage) for stage in state.stages]
        about = {"recipe": state.recipe, "working": state.working, "left": state.left}
        verdict = None if judged is None else vars(judged)
        print_json({**about, "stages": stages, "verdict": verdict})
        return
    rows = [
        (one.stage, one.state, _time(one.seconds), _time(one.left or None), one.about)
        for one in state.stages
    ]
    print_table(("stage", "state", "time", "left", ""), rows)
    done = f"{state.done} of {len(state.stages)} stages are done"
    if state.done == len(state.stages):
        print(done)
        if judged is not None:
            print(f"{judged.grade}: {judged.reason}\nnext: {judged.command}")
        return
    left = "an unknown time" if state.left is None else f"about {duration(state.left)}"
    print(f"{done}; {left} left")
    if not state.working:
        config, out = (shlex.quote(str(path)) for path in (run / CONFIG_FILE, run))
        print(f"continue with: medar run {state.recipe} {config} --out {out}")


def _time(seconds: float | None) -> str:
    from medar.recipes.budget import duration

    return "-" if seconds is None else duration(seconds)
