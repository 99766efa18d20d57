"""What can be said of the trainings of a synthesis before they run."""

from pathlib import Path
from typing import TYPE_CHECKING

from medar.data.layout import PLAN_FILE
from medar.data.plan import Plan
from medar.data.planning import check_values
from medar.errors import MedarError
from medar.pipeline.settings import SynthesisSettings
from medar.pipeline.stage import Outlook
from medar.settings import from_dict, to_dict

if TYPE_CHECKING:
    from torch import nn

    from medar.tokenizer.tokenizer import Tokenizer


def tokenizer_outlook(settings: SynthesisSettings, out: Path) -> Outlook:
    """Steps, minutes and size of the tokenizer's training."""
    training, tokenizer = settings.tokenizer.training, _tokenizer(settings, out)
    return Outlook(
        steps=training.steps,
        minutes=training.minutes,
        parameters=None if tokenizer is None else _size(tokenizer),
    )


def generator_outlook(settings: SynthesisSettings, out: Path) -> Outlook:
    """Steps, minutes and size of the generator's training; conditions are not counted."""
    from medar.generator.config import ConditionConfig
    from medar.generator.folder import make_model

    training, tokenizer = settings.generator.training, _tokenizer(settings, out)
    parameters = None
    if tokenizer is not None:
        model = settings.generator.model
        parameters = _size(make_model(model.kind, model.config(ConditionConfig()), tokenizer))
    return Outlook(steps=training.steps, minutes=training.minutes, parameters=parameters)


def _tokenizer(settings: SynthesisSettings, out: Path) -> "Tokenizer | None":
    """An untrained tokenizer of the right size, if the plan is known by now."""
    from medar.tokenizer.tokenizer import Tokenizer

    file, given = out / "prepared" / PLAN_FILE, settings.plan_values()
    if file.exists():
        try:
            plan = from_dict(Plan, {**to_dict(Plan.load(file)), **given}, str(file))
        except MedarError:  # values that do not go with the others: these are derived anew
            return None
    elif {"size", "downsampling"} <= given.keys():
        plan = check_values(given, None)
    else:
        return None
    if settings.tokenizer.model.label_head and not plan.labels:
        return None
    return Tokenizer(settings.tokenizer.model.config(plan), plan)


def _size(model: "nn.Module") -> int:
    return sum(one.numel() for one in model.parameters() if one.requires_grad)
