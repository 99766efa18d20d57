"""Rows of MONAI's generators: VQVAE with a transformer, and a flow in a first stage's latent."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from generators import Draw, evaluated, parameters
from tokenizer import load_best
from torch import Tensor, nn

from medar.files import atomic_path
from medar.generator.settings import GeneratorSettings
from medar.settings import load_yaml
from medar.tokenizer.settings import TokenizerSettings
from medar.tokenizer.tokenizer import Tokenizer
from medar.tokenizer.tokens import TOKENIZER, TokenIndex
from medar.training import fit
from peers import flow, transformer
from peers.detail import with_detail
from peers.first import FirstStage, first_stage
from peers.latents import SecondStage, encode_cases


class Setting(NamedTuple):
    """The tuned settings of a generator."""

    first: str
    """Its first stage, see `first_stage`."""
    rate: float
    size: float
    """Parameters of the second stage relative to medar's generator."""

    @classmethod
    def read(cls, text: str) -> "Setting":
        """Parse FIRST,LR,SIZE of a row's name."""
        first, rate, size = text.split(",")
        return cls(first, float(rate), float(size))


Made = tuple[SecondStage, Draw]
Make = Callable[[FirstStage, Tensor, Tensor, int, GeneratorSettings], Made]


def run(
    kind: str, chosen: Setting, settings: GeneratorSettings, budget: int, folder: Path,
    options: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    """Train both stages of a generator and evaluate its volumes.

    Args:
        kind: "ar" or "ldm".
        chosen: the tuned settings.
        settings: of medar's generator, for batch size and training, including its length.
        budget: parameters of medar's generator.
        folder: of the second stage's run.
        options: of the command line.
    """
    if options.tokenizer is None:
        raise SystemExit("MONAI's first stages need --tokenizer, the settings of medar's tokenizer")
    if kind == "ar" and chosen.first != "vqvae":
        raise SystemExit(
            f"row {kind}: the transformer needs the first stage vqvae, got {chosen.first}"
        )
    about = TokenIndex.load(options.tokens)
    base = load_yaml(TokenizerSettings, options.tokenizer)
    ours = Tokenizer.from_pretrained(options.tokens / TOKENIZER, "cpu")
    first = first_stage(
        chosen.first, options.prepared, base, options.vqvae, options.out, parameters_of(ours),
        options.first_minutes, options.first_steps,
    )  # fmt: skip
    train, validation = inputs(kind, first.model, about, options, chosen.first)
    torch.manual_seed(settings.training.seed)
    target = round(chosen.size * budget)
    task, draw = MAKE[kind](first, train, validation, target, settings)
    training = settings.training.with_learning_rate(chosen.rate)
    outcome = fit(task, training, folder, resume="auto")
    load_best(task, folder)
    task.model.eval()
    draw = with_detail(draw, ours, first.model, chosen.first, options)
    return {
        "minutes": outcome.elapsed / 60, "steps": outcome.step, "best": outcome.best,
        "best_step": outcome.best_step, "parameters": parameters(task.model), **first.about,
        "learning_rate": chosen.rate, "size": chosen.size, **evaluated(draw, options, folder),
    }  # fmt: skip


def inputs(
    kind: str, model: Any, about: TokenIndex, options: argparse.Namespace, name: str
) -> tuple[Tensor, Tensor]:
    """Training data (1 + variants, N, ...) and validation data (N, ...) of the second stage.

    Encoded once and kept in OUT for all settings.
    """
    path = options.out / f"encoded-{name}-{kind}.pt"
    if not path.exists():
        device, encode = next(model.parameters()).device, ENCODE[kind](model)

        def on_device(volume: Tensor) -> Tensor:
            return encode(volume.to(device))

        augmentation = about.augmentation
        train = encode_cases(on_device, options.prepared, "train", about.variants, augmentation)
        validation = encode_cases(on_device, options.prepared, "val")[0]
        with atomic_path(path) as temporary:
            torch.save((train, validation), temporary)
    train, validation = torch.load(path, weights_only=True)
    return train, validation


def of_transformer(
    first: FirstStage, train: Tensor, validation: Tensor, target: int, settings: GeneratorSettings
) -> Made:
    """The transformer over indices, with the depth of medar's generator."""
    grid, codes, depth = validation.shape[1:], first.model.num_embeddings, settings.model.depth
    tokens = validation[0].numel()
    model = nearest(
        range(4, 257), lambda size: transformer.transformer(size, depth, codes, tokens), target
    )
    task = transformer.TransformerTask(
        model, train, validation, settings.data.batch_size, settings.training.seed
    )
    return task, lambda seeds: transformer.sample(task.model, first.model, grid, seeds)


def of_flow(
    first: FirstStage, train: Tensor, validation: Tensor, target: int, settings: GeneratorSettings
) -> Made:
    """The U-Net on latents scaled to standard deviation 1, as in the tutorials."""
    scale, shape = 1 / float(train.std()), tuple(validation.shape[1:])
    model = nearest(range(4, 513, 4), lambda size: flow.unet(size, shape[0]), target)
    task = flow.FlowTask(
        model.to(memory_format=torch.channels_last_3d), flow.pad_to_even(train * scale),
        flow.pad_to_even(validation * scale), settings.data.batch_size, settings.training.seed,
    )  # fmt: skip
    return task, lambda seeds: flow.sample(task.model, first.model, shape, scale, seeds)


ENCODE: dict[str, Callable[[Any], Callable[[Tensor], Tensor]]] = {
    "ar": lambda model: model.index_quantize,
    "ldm": lambda model: model.encode_stage_2_inputs,
}
MAKE: dict[str, Make] = {"ar": of_transformer, "ldm": of_flow}


def nearest(sizes: Iterable[int], make: Callable[[int], nn.Module], target: int) -> nn.Module:
    """The network with the number of parameters closest to `target`."""

    def difference(size: int) -> int:
        with torch.device("meta"):
            return abs(parameters(make(size)) - target)

    return make(min(sizes, key=difference))


def parameters_of(tokenizer: nn.Module) -> int:
    """Number of parameters of a frozen tokenizer."""
    return sum(p.numel() for p in tokenizer.parameters())


def best_setting(kind: str, done: list[dict[str, Any]]) -> Setting:
    """The setting with the smallest Frechet distance among the rows `tune-KIND:...`."""
    begins = f"tune-{kind}:"
    tuned = [one for one in done if one["row"].startswith(begins)]
    if len(tuned) < 3:
        raise SystemExit(f"tune first: at least three rows {begins}FIRST,LR,SIZE")
    best = min(tuned, key=lambda one: one["frechet"])
    return Setting.read(best["row"].removeprefix(begins))
