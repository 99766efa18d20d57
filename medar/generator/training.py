"""From a folder of tokens and a YAML to a trained generator."""

from pathlib import Path

import torch

from medar.errors import MedarError
from medar.generator.attributes import attributes_of
from medar.generator.baselines.voxel import read_tokenizer
from medar.generator.config import ConditionConfig, GeneratorConfig
from medar.generator.data import GeneratorDataset
from medar.generator.folder import make_model
from medar.generator.settings import GeneratorSettings
from medar.generator.task import GeneratorTask, Preview
from medar.tokenizer.tokens import TokenDataset
from medar.training import Outcome, fit
from medar.training.folder import Resume
from medar.training.tracker import Tracker


def train_generator(
    settings: GeneratorSettings,
    tokens: str | Path,
    out: str | Path,
    tracker: Tracker | None = None,
    *,
    resume: Resume = "auto",
    preview: Preview | None = None,
) -> Outcome:
    """Train a generator on tokens; `out/model` is `Synthesizer.from_pretrained`'s.

    Args:
        settings: what to train and how.
        tokens: a folder that `encode_data_set` filled, with cases in "train" and "val".
        out: the folder of the run, see `medar.training.folder`.
        tracker: what else is told of settings and metrics.
        resume: see `medar.training.folder.Resume`.
        preview: shown samples at each evaluation.

    Raises:
        MedarError: tokens without what the settings ask for, or what `fit` raises.
        KeyboardInterrupt: a checkpoint was left that the same call goes on from.
    """
    task = make_task(settings, tokens, preview)
    return fit(task, settings.training, out, tracker, resume=resume)


def make_task(
    settings: GeneratorSettings, tokens: str | Path, preview: Preview | None = None
) -> GeneratorTask:
    """The task of `train_generator`, with weights drawn from the settings' seed.

    Raises:
        MedarError: see `train_generator`.
    """
    seed, maps = settings.training.seed, settings.condition.map == "label"
    train = TokenDataset(tokens, split="train", seed=seed, maps=maps)
    validation = TokenDataset(tokens, split="val", variant=0, maps=maps)
    tokenizer = read_tokenizer(train.tokenizer_folder)
    labels = list(tokenizer.plan.labels) if tokenizer.plan else []
    if maps and not labels:
        raise MedarError(
            f"condition.map label: the plan of {train.tokenizer_folder} names no labels; "
            "encode labelled data, or set condition.map none"
        )
    attributes = attributes_of(train.cases, settings.condition.attributes)
    model = settings.model
    config = GeneratorConfig(
        depth=model.depth,
        head_width=model.head_width,
        mlp=model.mlp,
        dropout=model.dropout,
        window=model.window,
        window_from=model.window_from,
        mixer=model.mixer,
        condition=ConditionConfig(
            attributes=attributes,
            map=settings.condition.map,
            map_channels=len(labels) + 1 if maps else 0,
            map_width=settings.condition.map_width,
        ),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GeneratorTask(
            make_model(model.kind, config, tokenizer),
            tokenizer,
            GeneratorDataset(train, attributes, labels if maps else ()),
            GeneratorDataset(validation, attributes, labels if maps else ()),
            settings,
            preview,
        )
