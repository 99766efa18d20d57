"""From prepared volumes and a YAML to a pretrained backbone."""

from pathlib import Path

import torch

from medar.data.loading import PreparedDataset
from medar.data.resolve import plan_for_training
from medar.segmentation.backbones import make_backbone
from medar.segmentation.pretext import FrozenTokenizer, make_pretext
from medar.segmentation.pretext.settings import PretrainSettings
from medar.segmentation.pretext.task import PretextTask
from medar.settings import SettingsSource, resolve_settings
from medar.training import Outcome, fit
from medar.training.distributed import current_ranks
from medar.training.folder import Resume
from medar.training.precision import choose_precision
from medar.training.tracker import Tracker

MOST = 64
"""Training volumes that a pretext task looks at before the first step, evenly over the data set."""


def pretrain_backbone(
    settings: PretrainSettings | SettingsSource,
    data: str | Path,
    out: str | Path,
    tracker: Tracker | None = None,
    *,
    resume: Resume = "auto",
) -> Outcome:
    """Pretrain a backbone without labels; `out/model` is what `load_pretrained` takes.

    Args:
        settings: what to train and how, as an object, a mapping or the path of a YAML file.
        data: a folder that `prepare` filled, with cases in "train" and "val".
        out: the folder of the run, see `medar.training.folder`.
        tracker: what else is told of settings and metrics.
        resume: see `medar.training.folder.Resume`.

    Raises:
        MedarError: no tokenizer where one is needed, one that does not go with the data, or what
            `fit` raises.
        KeyboardInterrupt: a checkpoint was left that the same call goes on from.
    """
    settings = resolve_settings(PretrainSettings, settings)
    return fit(make_task(settings, data), settings.training, out, tracker, resume=resume)


def make_task(settings: PretrainSettings, data: str | Path) -> PretextTask:
    """The task of `pretrain_backbone`, with weights drawn from the settings' seed.

    Raises:
        MedarError: see `pretrain_backbone`.
    """
    seed, chosen = settings.training.seed, settings.pretext
    train = PreparedDataset(
        data, split="train", augmentation=settings.data.augmentation, seed=seed, labels=False
    )
    validation = PreparedDataset(data, split="val", labels=False)
    plan = plan_for_training(train.plan, settings.plan, data)
    tokenizer = None
    if chosen.tokenizer is not None and chosen.kind != "masked":
        tokenizer = FrozenTokenizer.load(chosen.tokenizer, plan)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pretext = make_pretext(chosen, make_backbone(settings.backbone, plan), plan, tokenizer)
    places = range(0, len(train), -(-len(train) // MOST))
    device = choose_precision(settings.training, current_ranks().local_rank).device
    pretext.look_at(train[place]["image"].to(device) for place in places)
    digest = tokenizer.digest if tokenizer else "none"
    return PretextTask(pretext, plan, train, validation, settings, digest)
