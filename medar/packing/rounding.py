"""Weights at half precision, and what rounding them costs.

float16 rather than bfloat16: weights lie within its range, and it keeps eight times the precision.
Networks compute in float32 as before, since loading copies the values into float32 parameters.
Digests are those of the rounded values, so that a tokenizer has the same digest whether its file
holds float16 or float32.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from medar.data.loading import PreparedDataset
from medar.data.manifest import Split
from medar.evaluation.generation.sampling import conditions
from medar.evaluation.reconstruction.cases import evenly_spaced
from medar.evaluation.similarity import FidelityMeter
from medar.files import write_bytes
from medar.model_folder import record_digest
from medar.synthesis.synthesizer import Synthesizer

SMALL = 1024
"""Tensors of fewer elements stay in float32: norms, biases and gains cost next to nothing."""

MAX_ERROR = 2.0**-10
"""Largest relative error, of norms, at which a tensor is stored in float16."""

CASES = 16
"""Held-out volumes that the cost of rounding is measured on."""


@dataclass(frozen=True, kw_only=True)
class RoundingCost:
    """What the rounded weights of a tokenizer and a generator change, on held-out volumes."""

    weights: float
    """Largest relative error of a tensor."""
    tokens_changed: float
    """Fraction of the tokens that the rounded encoder chooses otherwise."""
    psnr: float
    """dB, of reconstructions with the exact weights."""
    psnr_rounded: float
    divergence: float
    """Kullback-Leibler divergence of the rounded generator's probabilities from the exact ones, in
    nats per token."""


def round_weights(folder: Path) -> float:
    """Store the large tensors of all weight files in a folder, and those below it, in float16.

    Returns:
        The largest relative error of a tensor.
    """
    largest = 0.0
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name, exact in tensors.items():
            if exact.dtype == torch.float32 and exact.numel() >= SMALL:
                rounded = exact.half()
                error = _relative_error(exact, rounded)
                if error <= MAX_ERROR:
                    tensors[name], largest = rounded, max(largest, error)
        write_bytes(path, save(tensors, metadata=metadata))
        record_digest(path.parent)
    return largest


@torch.no_grad()
def rounding_cost(
    exact: Synthesizer, rounded: Synthesizer, data: Path, split: Split, weights: float
) -> RoundingCost:
    """Compare two synthesizers of the same model on held-out volumes.

    Args:
        exact: with the weights as trained.
        rounded: with those of the bundle.
        data: a folder that `prepare` filled, of the generator's plan.
        split: the held-out cases.
        weights: see `round_weights`.

    Raises:
        MedarError: cases that do not fit the model.
    """
    dataset = PreparedDataset(data, split=split)
    indices = list(evenly_spaced(dataset, CASES).indices)
    meters = FidelityMeter(), FidelityMeter()
    changed, divergence = 0.0, 0.0
    for index in indices:
        volume, tokens = dataset[index]["image"][None], []
        for one, meter in zip((exact, rounded), meters, strict=True):
            pyramid = one.tokenizer.encode(volume)
            meter.update(volume, one.tokenizer.decode(pyramid).volume)
            tokens.append(torch.cat(pyramid.indices, dim=1))
        changed += (tokens[0] != tokens[1]).double().mean().item() / len(indices)
        condition = conditions(exact, dataset, [index])
        logits = (one.model(tokens[0], condition).double() for one in (exact, rounded))
        p, q = (one.log_softmax(-1) for one in logits)
        divergence += float((p.exp() * (p - q)).sum(-1).mean()) / len(indices)
    psnr, psnr_rounded = (meter.result().psnr for meter in meters)
    return RoundingCost(
        weights=weights,
        tokens_changed=changed,
        psnr=psnr,
        psnr_rounded=psnr_rounded,
        divergence=divergence,
    )


def _relative_error(exact: Tensor, rounded: Tensor) -> float:
    """The norm of the difference over that of the exact values; infinite where one overflows."""
    difference = (exact - rounded.float()).double().norm().item()
    norm = exact.double().norm().item()
    return difference / norm if norm else 0.0
