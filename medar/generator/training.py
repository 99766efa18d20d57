"""`train_generator`: from a folder of tokens and settings to a trained generator."""

import sys
from pathlib import Path

import torch

from medar.errors import MedarError
from medar.generator.attributes import attributes_of
from medar.generator.data import GeneratorDataset
from medar.generator.generator import Generator
from medar.generator.mixers.ssd import scan_path
from medar.generator.settings import ConditionConfig, GeneratorConfig, GeneratorSettings
from medar.generator.task import GeneratorTask, Preview
from medar.settings import SettingsSource, resolve_settings
from medar.tokenizer.tokenizer import Tokenizer
from medar.tokenizer.tokens import TokenDataset, TokenIndex
from medar.training import Outcome, fit
from medar.training.folder import Resume
from medar.training.tracker import Tracker


def train_generator(
    settings: GeneratorSettings | SettingsSource,
    tokens: str | Path,
    out: str | Path,
    tracker: Tracker | None = None,
    *,
    resume: Resume = "auto",
    preview: Preview | None = None,
) -> Outcome:
    """Train a generator on tokens; `Synthesizer.from_pretrained(out)` makes volumes with it.

    Args:
        settings: what to train and how, as an object, a mapping or the path of a YAML file.
        tokens: a folder that `encode_data_set` filled, with cases in "train" and "val".
        out: the folder of the run, see `medar.training.folder`.
        tracker: also receives settings and metrics.
        resume: see `medar.training.folder.Resume`.
        preview: called with samples at each evaluation.

    Raises:
        MedarError: the tokens do not fit the settings, or `fit` raises it.
        KeyboardInterrupt: interrupted; the same call resumes from the checkpoint.
    """
    settings = resolve_settings(GeneratorSettings, settings)
    task = make_task(settings, tokens, preview)
    if settings.model.mixer.kind == "mamba" and task.ranks.is_rank_zero:
        device = settings.training.device
        print(scan_path(None if device == "auto" else device), file=sys.stderr, flush=True)
    return fit(task, settings.training, out, tracker, resume=resume)


def make_task(
    settings: GeneratorSettings, tokens: str | Path, preview: Preview | None = None
) -> GeneratorTask:
    """The task of `train_generator`, its weights initialised from the settings' seed.

    Raises:
        MedarError: see `train_generator`.
    """
    seed, maps = settings.training.seed, settings.condition.map != "none"
    _check_maps(settings.condition.map, tokens)
    train = TokenDataset(
        tokens,
        split="train",
        seed=seed,
        original_fraction=settings.data.original_fraction,
        maps=maps,
    )
    validation = TokenDataset(tokens, split="val", variant=0, maps=maps)
    attributes = attributes_of(train.cases, settings.condition.attributes)
    train_items, validation_items = (
        GeneratorDataset(one, attributes) for one in (train, validation)
    )
    condition = ConditionConfig(
        attributes=attributes,
        map=settings.condition.map,
        map_channels=train_items.map_channels,
        map_width=settings.condition.map_width,
        augmentation=train.about.variants > 0 and settings.data.original_fraction > 0,
        source=train.about.source if maps else None,
    )
    tokenizer = Tokenizer.from_pretrained(train.tokenizer_folder, "cpu")
    if tokenizer.digest != train.about.tokenizer:
        raise MedarError(
            f"{train.tokenizer_folder}: tokenizer {tokenizer.digest}, but the tokens were encoded "
            f"by {train.about.tokenizer}; restore that tokenizer, or encode again"
        )
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU
        torch.manual_seed(seed)
        config = GeneratorConfig(
            model=settings.model,
            condition=condition,
            refinement=settings.objective.refinement_fraction > 0,
        )
        model = Generator.for_tokenizer(config, tokenizer)
    return GeneratorTask(model, tokenizer, train_items, validation_items, settings, preview)


def _check_maps(kind: str, tokens: str | Path) -> None:
    """Check that tokens have source volumes beside them if the settings ask for these.

    Raises:
        MedarError: they have not, or have them in place of label maps.
    """
    has_sources = TokenIndex.load(tokens).source is not None
    if kind == "source" and not has_sources:
        raise MedarError(
            f"{tokens}: condition.map is 'source', but there are no source volumes beside the "
            "tokens; encode with --source or --degradation, or set tokens.degradation"
        )
    if kind == "label" and has_sources:
        raise MedarError(
            f"{tokens}: condition.map is 'label', but there are source volumes beside the tokens; "
            "encode with --maps, or set it to 'source'"
        )
