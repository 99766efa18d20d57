"""A budget of time: what each stage is given of it."""

from collections.abc import Sequence

from medar.errors import MedarError
from medar.pipeline.ledger import Ledger
from medar.pipeline.stage import Stage


def minutes_for(
    stage: Stage, stages: Sequence[Stage], ledger: Ledger, budget: float | None
) -> float | None:
    """Minutes that a training may take; None for other stages, and without a budget.

    What the stages before have left of the budget is divided among this one and those after it, by
    their shares. Seconds are taken from the ledger, so that a recipe that was interrupted divides
    them as one that was not.

    Args:
        stage: of `stages`.
        stages: all of the recipe, in order.
        ledger: says what the stages before took.
        budget: minutes for all.

    Raises:
        MedarError: nothing is left.
    """
    if budget is None or not stage.training:
        return None
    place = [one.name for one in stages].index(stage.name)
    entries = [ledger.read(one.name) for one in stages[:place]]
    spent = sum(entry.seconds for entry in entries if entry is not None) / 60
    together = sum(one.share for one in stages[place:])
    if spent >= budget:
        raise MedarError(
            f"--max-minutes {budget:g}: the stages before {stage.name} took {spent:.1f}, so that "
            "nothing is left for it; give more"
        )
    return round((budget - spent) * stage.share / together, 4)
