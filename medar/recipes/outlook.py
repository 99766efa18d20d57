"""What can be said of trainings before they run."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medar.data.layout import PLAN_FILE
from medar.data.plan import Plan
from medar.data.planning import check_values
from medar.errors import MedarError
from medar.recipes.segmentation import SegmentationRecipeSettings
from medar.recipes.stage import Outlook
from medar.recipes.synthesis import SynthesisSettings
from medar.settings import from_dict, to_dict
from medar.tokenizer.settings import TokenizerSettings
from medar.training.settings import TrainingSettings

if TYPE_CHECKING:
    from torch import nn

    from medar.tokenizer.tokenizer import Tokenizer


def tokenizer_outlook(settings: TokenizerSettings, plan: Mapping[str, Any], out: Path) -> Outlook:
    """Steps, minutes and size of a tokenizer's training.

    Args:
        settings: of the tokenizer.
        plan: values of the plan that are given.
        out: the recipe's folder.
    """
    training, tokenizer = settings.training, _tokenizer(settings, plan, out)
    return Outlook(
        steps=training.steps,
        minutes=training.minutes,
        parameters=None if tokenizer is None else _size(tokenizer),
    )


def generator_outlook(settings: SynthesisSettings, out: Path) -> Outlook:
    """Steps, minutes and size of the generator's training; conditions are not counted."""
    from medar.generator.generator import Generator
    from medar.generator.settings import GeneratorConfig

    training = settings.generator.training
    tokenizer = _tokenizer(settings.tokenizer, settings.plan_values(), out)
    parameters = None
    if tokenizer is not None:
        config = GeneratorConfig(model=settings.generator.model)
        parameters = _size(Generator.for_tokenizer(config, tokenizer))
    return Outlook(steps=training.steps, minutes=training.minutes, parameters=parameters)


def pretraining_outlook(settings: SegmentationRecipeSettings, out: Path) -> Outlook:
    """Steps, minutes and size of a backbone's training; the pretext's own heads are not counted."""
    assert settings.pretrain is not None
    return _backbone_outlook(settings.pretrain.training, settings, out)


def segmentation_outlook(settings: SegmentationRecipeSettings, out: Path) -> Outlook:
    """Steps, minutes and size of a segmentation network's training; the head is not counted."""
    return _backbone_outlook(settings.segmentation.training, settings, out)


def _backbone_outlook(
    training: TrainingSettings, settings: SegmentationRecipeSettings, out: Path
) -> Outlook:
    from medar.segmentation.backbones import make_backbone

    plan = plan_to_come(settings.plan_values(), out)
    size = None if plan is None else _size(make_backbone(settings.segmentation.backbone, plan))
    return Outlook(steps=training.steps, minutes=training.minutes, parameters=size)


def plan_to_come(given: Mapping[str, Any], out: Path) -> Plan | None:
    """The plan that models will be made for, if it is known by now.

    Args:
        given: values of the plan.
        out: the recipe's folder.
    """
    file = out / "prepared" / PLAN_FILE
    if file.exists():
        try:
            return from_dict(Plan, {**to_dict(Plan.load(file)), **given}, str(file))
        except MedarError:  # values that do not go with the others: these are derived anew
            return None
    return check_values(dict(given), None) if {"size", "downsampling"} <= given.keys() else None


def _tokenizer(
    settings: TokenizerSettings, given: Mapping[str, Any], out: Path
) -> "Tokenizer | None":
    """An untrained tokenizer of the right size, if the plan is known by now."""
    from medar.tokenizer.tokenizer import Tokenizer

    plan = plan_to_come(given, out)
    if plan is None or (settings.model.label_head and not plan.labels):
        return None
    return Tokenizer(settings.model.config(plan), plan)


def _size(model: "nn.Module") -> int:
    return sum(one.numel() for one in model.parameters() if one.requires_grad)
