"""medar's detail decoder on any first stage, so that a comparison is one of generators.

Trained for each first stage by the same settings, of the same size, on what its decoder makes of
the training volumes; then it adds detail to what a generator's samples decode to.
"""

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from generators import Draw, length
from monai.networks.nets import VQVAE, AutoencoderKL
from tokenizer import load_best
from torch import Tensor

from medar.devices import device_of
from medar.settings import load_yaml
from medar.tokenizer.detail import DetailDecoder
from medar.tokenizer.detail_folder import save_detail
from medar.tokenizer.detail_training import DetailTask, make_task
from medar.tokenizer.settings import DetailSettings
from medar.tokenizer.tokenizer import Tokenizer
from medar.training import fit

Reconstruct = Callable[[Tensor], Tensor]


class FirstStageDetailTask(DetailTask):
    """Train a detail decoder for another first stage.

    Args:
        like: the task for medar's tokenizer, whose decoder, data and settings are used.
        name: of the first stage.
        reconstruct: volumes (B, C, X, Y, Z) to their reconstructions.
    """

    def __init__(self, like: DetailTask, name: str, reconstruct: Reconstruct) -> None:
        super().__init__(like.model, like.tokenizer, like.train, like.validation, like.settings)
        self.name, self._reconstruct = name, reconstruct

    def reconstruct(self, volume: Tensor) -> Tensor:
        """The reconstructions, within [-1, 1]."""
        return self._reconstruct(volume).float().clamp(-1.0, 1.0)

    def describe(self) -> dict[str, Any]:
        """The data, the first stage and the model."""
        return {**super().describe(), "tokenizer": self.name}

    def save_model(self, folder: Path) -> None:
        """Write the detail decoder alone."""
        save_detail(folder, self.model, self.name)


def with_detail(draw: Draw, ours: Tokenizer, first: Any, name: str, options: Namespace) -> Draw:
    """The same samples with detail; `draw` itself without --detail.

    Args:
        draw: the samples.
        ours: medar's tokenizer.
        first: MONAI's first stage, or None for medar's tokenizer.
        name: of the first stage; OUT/detail-NAME holds its detail decoder, which is trained once.
        options: of the command line.
    """
    if options.detail is None:
        return draw
    if ours.detail is not None:
        raise SystemExit(
            f"{options.tokens}: its tokenizer has a detail decoder already; encode with one that "
            "has none, or leave out --detail"
        )
    changes = length(options.detail_minutes, options.detail_steps)
    settings = load_yaml(DetailSettings, options.detail)
    settings = replace(settings, training=replace(settings.training, **changes))
    task = make_task(settings, ours, options.prepared)
    if first is not None:
        task = FirstStageDetailTask(task, name, reconstruction(first))
    folder = options.out / f"detail-{name}"
    fit(task, settings.training, folder, resume="auto")
    load_best(task, folder)
    decoder: DetailDecoder = task.model.eval()

    def draw_with_detail(seeds: Sequence[int]) -> Tensor:
        return decoder.draw(draw(seeds).float().to(device_of(decoder)), seeds)

    return draw_with_detail


def reconstruction(first: VQVAE | AutoencoderKL) -> Reconstruct:
    """From volumes to latents and back, as the second stages use a first stage."""

    @torch.no_grad()
    def reconstruct(volume: Tensor) -> Tensor:
        made: Tensor = first.decode_stage_2_outputs(first.encode_stage_2_inputs(volume))
        return made

    return reconstruct
