"""Cost model: the bytes that a training step needs, from the sizes alone.

    bytes = fixed + volumes of the batch * (kept + passing)

`fixed`: weights, gradients, AdamW's two moments, averaged weights, and copies of the weights in
bf16. `kept`: what the forward pass keeps for the backward pass. `passing`: what exists only while
one layer is computed backward. Kept tensors of convolutional networks are counted on tensors
without data, those of the generator by a formula. Libraries' own memory is not included.

E width, r MLP ratio, V codes, L tokens of all scales, D width of a code.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medar.data.plan import Plan
from medar.generator.convolutions import GridConvolutions
from medar.generator.crops import cropped_length
from medar.generator.generator import Generator
from medar.generator.settings import GeneratorConfig, GeneratorSettings
from medar.segmentation.pretext.settings import PretrainSettings
from medar.segmentation.segmenter import Segmenter
from medar.segmentation.settings import SegmentationSettings
from medar.tokenizer.codebooks import CodebookSettings, make_codebook
from medar.tokenizer.detail import DetailConfig, DetailDecoder
from medar.tokenizer.losses import Discriminator
from medar.tokenizer.network import Decoder, Encoder, NetworkConfig
from medar.tokenizer.norms import Norm
from medar.tokenizer.quantiser import MultiScaleQuantiser
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.settings import DetailSettings, TokenizerSettings
from medar.training.settings import TrainingSettings

Kind = Literal["cpu", "cuda"]

BLOCK = {
    ("cpu", 4): 68.7,
    ("cpu", 2): 58.7,
    ("cuda", 4): 60.7,
    ("cuda", 2): 48.0,
}
"""Bytes per token that a block of the generator keeps besides its MLP's hidden features, in
multiples of E, by device and bytes per number. Measured on a CPU; on CUDA derived: attention in
bf16, one kernel per norm."""

MIXERS = {"none": (0.0, 0.0), "attention": (0.0, 6.7), "mamba": (107.8, 93.2),
          "scale_ssm": (118.8, 107.2)}  # fmt: skip
"""What a mixer keeps in addition, in fp32 and in bf16, measured at 16 state features."""

ENDS = 11.6
"""What embedding and head keep per token, in multiples of E."""

QUANTISER = 6
"""Float32 copies of the latent that the quantiser keeps per scale."""

LARGEST = 4
"""Tensors as large as the largest kept one that exist at once in the backward pass."""


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Bytes of a training step."""

    fixed: int
    kept: int
    """Per volume."""
    passing: int
    """Per volume."""

    def bytes(self, batch: int) -> int:
        """Of a step on a batch."""
        return self.fixed + batch * (self.kept + self.passing)

    def largest_batch(self, room: float) -> int:
        """The most volumes whose step fits; 0 if none does."""
        return max(0, int((room - self.fixed) // max(1, self.kept + self.passing)))


def number_bytes(training: TrainingSettings, device: Kind) -> int:
    """Bytes of an activation: 2 in bf16, 4 in fp32; "auto" is bf16 on CUDA."""
    half = training.precision == "bf16" or (training.precision == "auto" and device == "cuda")
    return 2 if half else 4


def fixed_bytes(parameters: int, training: TrainingSettings, size: int) -> int:
    """Of the weights and all that is as large as they are."""
    copies = 4 + 4 + 8 + (4 if training.ema_decay else 0) + (2 if size == 2 else 0)
    return parameters * copies


def tokenizer_cost(settings: TokenizerSettings, plan: Plan, device: Kind = "cuda") -> StepCost:
    """Of a tokenizer for volumes of a plan, once all losses have started."""
    config, size = settings.model.config(plan), number_bytes(settings.training, device)
    network, voxels = config.network, prod(plan.size)
    with torch.device("meta"):
        encoder, decoder = Encoder(network), Decoder(network)
        given = torch.empty(1, network.channels, *plan.size)
        codebook = make_codebook(config.codebook)
        adversarial = settings.loss.adversarial
        judge = Discriminator(adversarial.discriminator(network.channels)) if adversarial else None
    found = kept_by(lambda: decoder(encoder(given)), encoder, decoder)
    kept = found.on(device, size)
    latents = len(config.schedule) * QUANTISER * network.code_width * prod(config.schedule.latent)
    parameters = count(encoder) + count(decoder) + count(codebook)
    losses = 12 * voxels * network.channels
    if settings.loss.frequency_weight:
        losses += 40 * voxels * network.channels  # spectra of both volumes
    if judge is not None:  # of the volume, and of the decoded one for either side
        kept += 3 * kept_by(lambda: judge(given), judge).on(device, size)
        parameters += count(judge)
    return StepCost(
        fixed=fixed_bytes(parameters, settings.training, size),
        kept=kept + 4 * latents + losses,
        passing=LARGEST * found.largest * size // 4,
    )


def detail_cost(
    settings: DetailSettings, network: NetworkConfig, plan: Plan, device: Kind = "cuda"
) -> StepCost:
    """Of a detail decoder of a tokenizer, in the last part of its training."""
    size = number_bytes(settings.training, device)
    config = DetailConfig.for_network(network, settings.model.widths, settings.model.steps)
    with torch.device("meta"):
        model = DetailDecoder(config)
        given, time = torch.empty(1, network.channels, *plan.size), torch.empty(1)
    found = kept_by(lambda: model(given, given, model.log_size(given), time), model)
    draws = 2 if settings.one_step else 1
    return StepCost(
        fixed=fixed_bytes(count(model), settings.training, size),
        kept=draws * found.on(device, size),
        passing=LARGEST * found.largest * size // 4,
    )


def generator_cost(
    settings: GeneratorSettings,
    schedule: ScaleSchedule,
    codebook: CodebookSettings,
    device: Kind = "cuda",
) -> StepCost:
    """Of a generator of the tokens of a schedule.

    Raises:
        KeyError: a registered mixer, whose cost is unknown.
    """
    model, size = settings.model, number_bytes(settings.training, device)
    width, length = model.width, schedule.length
    if model.crop_side is not None:
        length = cropped_length(schedule, model.crop_side)
    mixers = len(range(0, model.depth, model.mixer.every))
    extra = MIXERS[model.mixer.kind][size == 2] * model.mixer.expand
    hidden = 2 * model.mlp_ratio * size
    dropped = 2 * size if model.dropout else 0
    block = length * width * (BLOCK[device, size] + hidden + dropped)
    mixer = length * width * extra
    logits = length * codes(codebook) * (4 + 4 + 4 + size)
    ends = length * width * ENDS + logits
    kept = model.depth * block + mixers * mixer
    if model.activation_checkpointing:
        kept = model.depth * length * width * 4 + block + mixer
    with torch.device("meta"):
        convolutions = GridConvolutions(model.convolutions, width, schedule, model.dropout)
        given = torch.empty(1, schedule.length, width)
    kept += kept_by(lambda: convolutions(given), convolutions).on(device, size)
    with torch.device("meta"):
        one = ScaleSchedule(grids=((1, 1, 1),))
        quantiser = MultiScaleQuantiser(make_codebook(codebook), one)
        network = Generator(GeneratorConfig(model=model), quantiser)
    return StepCost(
        fixed=fixed_bytes(count(network), settings.training, size),
        kept=int(kept + ends),
        passing=int(length * width * (4 * 4 + 2 * model.mlp_ratio * size)),
    )


def segmentation_cost(
    settings: SegmentationSettings | PretrainSettings, plan: Plan, device: Kind = "cuda"
) -> StepCost:
    """Of a segmentation network, or of its pretraining, on volumes or patches of a plan."""
    size = number_bytes(settings.training, device)
    with torch.device("meta"):
        model = Segmenter(settings.backbone, plan)
        given = torch.empty(1, len(plan.channels) or 1, *plan.size)
    found = kept_by(lambda: model(given), model)
    classes = 4 * 4 * (len(plan.labels) + 1) * prod(plan.size)
    return StepCost(
        fixed=fixed_bytes(count(model), settings.training, size),
        kept=found.on(device, size) + classes,
        passing=LARGEST * found.largest * size // 4,
    )


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a forward pass in float32 keeps for the backward pass."""

    bytes: int
    """Of all tensors; those that share memory count once, weights not at all."""
    normed: int
    """Numbers that pass RMSNorms."""
    largest: int
    """Bytes of the largest tensor."""

    def on(self, device: Kind, size: int) -> int:
        """Bytes on a device, with `size` bytes per number.

        One kernel of CUDA keeps a norm's input alone; on a CPU the normalised numbers are kept too,
        and both in float32.
        """
        if device == "cuda":
            return self.bytes * size // 4
        return self.bytes * size // 4 + self.normed * (4 if size == 4 else 6)


def kept_by(run: Callable[[], Any], *modules: nn.Module) -> Kept:
    """Count what a forward pass keeps; blocks with activation checkpointing keep their input."""
    weights = {one.untyped_storage()._cdata for m in modules for one in m.parameters()}
    seen: dict[int, Tensor] = {}
    inside: list[nn.Module] = []
    normed = 0

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if not inside and storage not in weights:
            seen.setdefault(storage, tensor)
        return tensor

    def enter(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal normed
        if not inside and isinstance(module, Norm):
            normed += inputs[0].numel()
        if isinstance(module, Norm) or getattr(module, "activation_checkpointing", False):
            keep(inputs[0])
            inside.append(module)

    def leave(module: nn.Module, _: tuple[Tensor, ...], __: Any) -> None:
        if inside and inside[-1] is module:
            inside.pop()

    parts = [part for module in modules for part in module.modules()]
    handles = [part.register_forward_pre_hook(enter) for part in parts]
    handles += [part.register_forward_hook(leave) for part in parts]
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
            run()
    finally:
        for handle in handles:
            handle.remove()
    sizes = [one.untyped_storage().nbytes() for one in seen.values()]
    return Kept(bytes=sum(sizes), normed=normed, largest=max(sizes, default=0))


def count(module: nn.Module) -> int:
    """Parameters."""
    return sum(one.numel() for one in module.parameters())


def codes(codebook: CodebookSettings) -> int:
    """V of a codebook."""
    with torch.device("meta"):
        return make_codebook(codebook).size
