"""From a data set and a YAML to a trained tokenizer."""

import warnings
from pathlib import Path
from typing import Any

import torch

from medar.data.loading import PreparedDataset
from medar.data.manifest import Manifest
from medar.data.plan import Plan
from medar.data.planning import plan_in_force
from medar.data.prepare import prepare
from medar.errors import MedarError
from medar.settings import from_dict, to_dict
from medar.tokenizer.settings import TokenizerSettings
from medar.tokenizer.task import TokenizerTask
from medar.tokenizer.tokenizer import Tokenizer
from medar.training import Outcome, fit
from medar.training.folder import Resume
from medar.training.tracker import Tracker


def train_tokenizer(
    settings: TokenizerSettings,
    data: str | Path,
    out: str | Path,
    tracker: Tracker | None = None,
    *,
    resume: Resume = "auto",
) -> Outcome:
    """Train a tokenizer on a prepared data set; `out/model` is `Tokenizer.from_pretrained`'s.

    Args:
        settings: what to train and how.
        data: a folder that `prepare` filled, with cases in "train" and "val".
        out: the folder of the run, see `medar.training.folder`.
        tracker: what else is told of settings and metrics.
        resume: see `medar.training.folder.Resume`.

    Raises:
        MedarError: the data's plan is not what the settings ask for, or what `fit` raises.
        KeyboardInterrupt: a checkpoint was left that the same call goes on from.
    """
    return fit(make_task(settings, data), settings.training, out, tracker, resume=resume)


def make_task(settings: TokenizerSettings, data: str | Path) -> TokenizerTask:
    """The task of `train_tokenizer`, with weights drawn from the settings' seed.

    Raises:
        MedarError: see `train_tokenizer`.
    """
    seed = settings.training.seed
    train = PreparedDataset(data, split="train", augmentation=settings.data.augmentation, seed=seed)
    validation = PreparedDataset(data, split="val")
    plan = agreed_plan(train.plan, settings.plan, data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = Tokenizer(settings.model.config(plan), plan)
        return TokenizerTask(tokenizer, train, validation, settings.loss, settings.data)


def prepared_data(
    manifest: Manifest, given: dict[str, Any], out: str | Path, *, workers: int | None = None
) -> Path:
    """Prepare a data set in `out` as the settings' plan asks; what is there already is kept.

    Cases that cannot be prepared are set aside with a warning.

    Args:
        manifest: the data set.
        given: values of the plan, as `TokenizerSettings.plan` has them.
        out: the folder for prepared cases.
        workers: processes; default: one a processor.

    Raises:
        MedarError: what `plan_in_force` and `prepare` raise.
    """
    plan = plan_in_force(manifest, out, workers=workers, overrides=given)
    done = prepare(manifest, plan, out, workers=workers)
    for case, reason in done.failed.items():
        warnings.warn(f"{case} is set aside: {reason}", stacklevel=2)
    return done.folder


def agreed_plan(plan: Plan, given: dict[str, Any], data: str | Path) -> Plan:
    """The plan of prepared data with the downsampling that the settings ask for.

    The downsampling is the model's affair alone; everything else the data were prepared with.

    Raises:
        MedarError: the settings ask for what the data were not prepared with.
    """
    asked = from_dict(Plan, {**to_dict(plan), **given}, "plan")
    for name in given:
        if name != "downsampling" and getattr(asked, name) != getattr(plan, name):
            raise MedarError(
                f"{data}: was prepared with {name} {to_dict(plan)[name]}, the configuration's plan "
                f"asks for {to_dict(asked)[name]}; prepare it anew, or change plan.{name}"
            )
    return asked
