"""A budget of time: what each stage is given of it.

What the stages before have left is divided among a stage and those after it, by their shares.
"""

from collections.abc import Sequence

from medar.errors import MedarError
from medar.recipes.planning import Step
from medar.recipes.stage import Stage
from medar.records import Records


def minutes_for(
    stage: Stage, stages: Sequence[Stage], records: Records, budget: float | None
) -> float | None:
    """Minutes that a training may take; None for other stages, and without a budget.

    What stages took is read from the records, so that a recipe that was interrupted divides its
    time as one that was not.

    Args:
        stage: of `stages`, about to begin.
        stages: all of the recipe, in order.
        records: says what the stages before took.
        budget: minutes for all.

    Raises:
        MedarError: nothing is left.
    """
    if budget is None or not stage.training:
        return None
    place = [one.name for one in stages].index(stage.name)
    entries = [records.read(one.name) for one in stages[:place]]
    spent = sum(entry.seconds for entry in entries if entry is not None) / 60
    given = round((budget - spent) * _part(stages, place), 4)
    if given <= 0:
        raise MedarError(
            f"--max-minutes {budget:g}: the stages before {stage.name} took {spent:.1f}, so that "
            "nothing is left for it; give more"
        )
    return given


def expected_minutes(
    steps: Sequence[Step], stages: Sequence[Stage], records: Records, budget: float | None
) -> list[float | None]:
    """What the trainings of a plan will be given, if each stage takes what it took before.

    A stage that never ran is taken to use its share.

    Args:
        steps: the plan.
        stages: all of the recipe, in order.
        records: says what stages took.
        budget: minutes for all.
    """
    given: list[float | None] = []
    left = budget or 0.0
    for place, step in enumerate(steps):
        entry, known = records.read(step.stage.name), records.last_done(step.stage.name)
        minutes = None if budget is None else left * _part(stages, place)
        if step.action == "resume" and entry is not None:
            minutes = entry.minutes  # as it began
        given.append(minutes if step.stage.training else None)
        trains = step.stage.training and step.action in ("run", "resume")
        if known is not None and not trains:
            minutes = known.seconds / 60
        left = max(0.0, left - (minutes or 0.0))
    return given


def _part(stages: Sequence[Stage], place: int) -> float:
    """A stage's part of what is left for it and those after it."""
    return stages[place].share / sum(one.share for one in stages[place:])
