"""First stages of MONAI's generators: a VQVAE or an AutoencoderKL, in medar's loop.

Trained as in MONAI's tutorials: L1, plus the quantiser's loss or 1e-6 times the divergence from a
normal distribution, plus a PatchDiscriminator with weight 0.01 in the second half of the run.
JukeboxLoss, on the amplitudes of the spectrum, replaces the PerceptualLoss of the tutorials, which
needs downloaded weights. The last weights are kept: PSNR alone would select weights from before the
discriminator.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from generators import length, parameters
from monai.losses import JukeboxLoss, PatchAdversarialLoss
from monai.networks.nets import VQVAE, AutoencoderKL, PatchDiscriminator
from tokenizer import MonaiTask, load_best, read, setting
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from medar.data.loading import Item, PreparedDataset, make_loader, set_epoch
from medar.tokenizer.settings import TokenizerSettings
from medar.training import Task, fit
from medar.training.task import frozen_call

START, ADVERSARIAL_WEIGHT, DIVERGENCE_WEIGHT = 0.5, 0.01, 1e-6
SPECTRUM = JukeboxLoss(spatial_dims=3)
ADVERSARIAL_LOSS = PatchAdversarialLoss(criterion="least_squares")


@dataclass(frozen=True, kw_only=True)
class FirstStage:
    """A trained first stage."""

    model: VQVAE | AutoencoderKL
    """Frozen, in evaluation mode."""
    about: dict[str, Any]
    """Values for the row of results."""


def first_stage(
    name: str, prepared: Path, settings: TokenizerSettings, vqvae: str, out: Path, budget: int,
    minutes: float, steps: int | None,
) -> FirstStage:  # fmt: skip
    """Train a first stage, or load it if `out` has it already.

    Args:
        name: "vqvae", with about `budget` parameters, or "kl-W" with W channels at full resolution.
        prepared: the cases.
        settings: augmentation, batch size and training of medar's tokenizer.
        vqvae: LR,DECAY,CODES of the VQVAE; the learning rate is also that of "kl-W".
        out: folder of the first stages.
        budget: parameters of medar's tokenizer.
        minutes: of training.
        steps: of training, instead of minutes.
    """
    chosen = setting(vqvae)
    settings = _as_chosen(settings, chosen, length(minutes, steps))
    kind, _, width = name.partition("-")
    task: FirstStageTask
    if kind == "vqvae":
        task = VqvaeTask(prepared, settings, chosen, budget)
    else:
        task = KlTask(prepared, settings, int(width))
    folder = out / f"first-{name}"
    outcome = fit(task, settings.training, folder, resume="auto")
    load_best(task, folder)
    about = {
        "first": name, "first_minutes": outcome.elapsed / 60, "first_steps": outcome.step,
        "first_parameters": parameters(task.model),
        "first_psnr": read(folder / "metrics.jsonl")[-1]["validation/psnr"],
    }  # fmt: skip
    return FirstStage(model=task.model.eval().requires_grad_(False), about=about)


class FirstStageTask(Task[Item]):
    """Losses of a first stage: L1, spectrum and discriminator."""

    metric = "progress"
    larger_is_better = True
    model: Any

    def __init__(self) -> None:
        self.discriminator = PatchDiscriminator(
            spatial_dims=3, channels=16, in_channels=1, num_layers_d=3, norm="INSTANCE"
        )

    def reconstruct(self, volume: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The reconstructed batch, and the losses of its latent."""
        raise NotImplementedError

    def loss(self, batch: Item, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of all losses, and each weighted loss."""
        volume = batch["image"].contiguous(memory_format=torch.channels_last_3d)
        made, terms = self.reconstruct(volume)
        terms |= {"l1": l1_loss(made.float(), volume), "spectrum": SPECTRUM(made.float(), volume)}
        if self.progress >= START:
            terms |= self._adversarial(made, volume)
        return torch.stack(list(terms.values())).sum(), terms

    def companions(self) -> dict[str, nn.Module]:
        """The discriminator."""
        return {"discriminator": self.discriminator}

    def _adversarial(self, made: Tensor, volume: Tensor) -> dict[str, Tensor]:
        """Losses of generator and discriminator; each affects its own parameters only."""
        fooled = ADVERSARIAL_LOSS(
            frozen_call(self.discriminator, made)[-1].float(),
            target_is_real=True, for_discriminator=False,
        )  # fmt: skip
        losses = [
            ADVERSARIAL_LOSS(
                self.discriminator(one)[-1].float(), target_is_real=real, for_discriminator=True
            )
            for one, real in ((volume, True), (made.detach(), False))
        ]
        return {"adversarial": ADVERSARIAL_WEIGHT * fooled, "discriminator": sum(losses) / 2}


class VqvaeTask(FirstStageTask, MonaiTask):
    """The VQVAE of benchmarks/tokenizer.py with these losses."""

    def __init__(
        self, prepared: Path, settings: TokenizerSettings, chosen: dict[str, Any], budget: int
    ) -> None:
        MonaiTask.__init__(self, prepared, settings, chosen, budget)
        FirstStageTask.__init__(self)

    def reconstruct(self, volume: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The reconstruction, and the quantiser's loss."""
        made, quantisation = self.model(volume)
        return made, {"quantiser": quantisation}

    def evaluate(self) -> dict[str, float]:
        """PSNR of the validation cases, and the progress, so that the last weights are kept."""
        return {**MonaiTask.evaluate(self), "progress": self.progress}


class KlTask(FirstStageTask):
    """An AutoencoderKL as in the LDM tutorial: three levels, no attention, downsampling 4."""

    def __init__(self, prepared: Path, settings: TokenizerSettings, width: int) -> None:
        torch.manual_seed(settings.training.seed)
        self.model = AutoencoderKL(
            spatial_dims=3, in_channels=1, out_channels=1, channels=(width, 2 * width, 2 * width),
            num_res_blocks=1, attention_levels=(False,) * 3, latent_channels=3, norm_num_groups=8,
            with_encoder_nonlocal_attn=False, with_decoder_nonlocal_attn=False,
        ).to(memory_format=torch.channels_last_3d)  # fmt: skip
        super().__init__()
        train = PreparedDataset(
            prepared, split="train", augmentation=settings.data.augmentation,
            seed=settings.training.seed,
        )  # fmt: skip
        self.validation = PreparedDataset(prepared, split="val")
        self.loader = make_loader(train, batch_size=settings.data.batch_size)

    def batches(self, epoch: int, start: int) -> Iterator[Item]:
        """The batches of an epoch, from batch `start` on."""
        set_epoch(self.loader, epoch)
        return islice(iter(self.loader), start, None)

    def reconstruct(self, volume: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The reconstruction, and the divergence from a normal distribution."""
        made, mean, deviation = self.model(volume)
        mean, variance = mean.float(), deviation.float().square()
        each = 0.5 * (mean.square() + variance - variance.clamp(min=1e-12).log() - 1)
        return made, {"divergence": DIVERGENCE_WEIGHT * each.flatten(1).sum(1).mean()}

    def evaluate(self) -> dict[str, float]:
        """See `VqvaeTask.evaluate`."""
        found, device = [], next(self.model.parameters()).device
        for item in self.validation:
            volume = item["image"][None].to(device)
            error = (self.model.reconstruct(volume).float() - volume).square().mean()
            found.append(float(10 * torch.log10(4 / error)))
        return {"psnr": sum(found) / len(found), "progress": self.progress}


def _as_chosen(
    settings: TokenizerSettings, chosen: dict[str, Any], lasting: dict[str, Any]
) -> TokenizerSettings:
    """The settings of medar's tokenizer with a peer's learning rate and length."""
    training = settings.training.with_learning_rate(chosen["learning_rate"])
    return replace(settings, training=replace(training, **lasting))
