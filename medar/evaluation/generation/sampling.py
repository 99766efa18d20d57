"""Volumes that a generator samples for an evaluation: in memory, in the prepared space of its plan.

Each is sampled under the conditions of a held-out case - its attributes and, for models that take
one, its label map - so that the set should resemble the held-out volumes.

B batch, C channels, X Y Z voxels.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medar.data.loading import PreparedDataset
from medar.devices import device_of, peak_memory_mib
from medar.errors import MedarError, check_positive
from medar.evaluation.distances import FEW
from medar.evaluation.generation.batches import Batch
from medar.evaluation.generation.evaluate import GenerationReport, HeldOut
from medar.evaluation.generation.files import as_volume
from medar.evaluation.reconstruction.cases import cases_of, check_fit
from medar.generator.attributes import case_values
from medar.generator.conditions import Condition
from medar.generator.known import KnownTokens
from medar.generator.maps import label_classes, one_hot
from medar.generator.sampling import sample_and_decode
from medar.generator.settings import SamplingSettings
from medar.progress import track
from medar.settings import to_dict
from medar.synthesis.synthesizer import Synthesizer, seeds_from
from medar.tokenizer.tokenizer import Tokenizer
from medar.volume import Volume
from medar.words import format_count

SHOWN = 8
"""Volumes that are kept for a picture, unless more are asked for."""


class SampledVolumes:
    """Batches of generated volumes, with time and memory.

    Sample i has the seed `seed + i` and the conditions of one of the held-out cases, in their
    order, repeated if there are more samples than cases.

    Args:
        synthesizer: the generator.
        prepared: a folder that `prepare` filled, of the generator's size and labels.
        split: the held-out cases.
        samples: number of volumes; default: the number of held-out cases, at least 20.
        seed: of the first volume.
        sampling: settings of the sampler; default the generator's own.
        batch_size: volumes per batch, fewer if memory is short.
        shown: number of volumes that are kept for pictures.

    Raises:
        MedarError: a number out of range, settings that do not fit the model, or cases that do
            not.
    """

    def __init__(
        self,
        synthesizer: Synthesizer,
        prepared: str | Path,
        *,
        split: HeldOut = "test",
        samples: int | None = None,
        seed: int = 0,
        sampling: SamplingSettings | None = None,
        batch_size: int = 4,
        shown: int = SHOWN,
    ) -> None:
        check_positive(samples=samples, batch_size=batch_size)
        self._shown = shown
        self.synthesizer, self.batch_size = synthesizer, batch_size
        self.settings = sampling or synthesizer.sampling
        model = synthesizer.model
        self.settings.check(model.schedule, model.config.refinement)
        cases = cases_of(prepared, split)
        assert isinstance(cases.dataset, PreparedDataset)
        self.dataset = cases.dataset
        check_conditions(synthesizer, self.dataset)
        self.seeds = seeds_from(seed, max(len(cases), FEW) if samples is None else samples)
        self._indices = [cases.indices[k] for k in spread_over(len(cases), len(self.seeds))]
        self._seconds = 0.0
        self._count = 0
        self._peak: int | None = None
        self._first: list[Tensor] = []

    def __iter__(self) -> Iterator[Batch]:
        """Volumes (B, C, X, Y, Z); with a label head also their label maps (B, 1, X, Y, Z)."""
        total = -(-len(self.seeds) // self.batch_size)
        return track(self._batches(), total=total, label="synthesize", unit="batch")

    def _batches(self) -> Iterator[Batch]:
        self._seconds, self._count, self._first = 0.0, 0, []
        device = device_of(self.synthesizer.tokenizer)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        for start in range(0, len(self.seeds), self.batch_size):
            batch = slice(start, start + self.batch_size)
            condition = conditions(self.synthesizer, self.dataset, self._indices[batch])
            began = time.perf_counter()
            volumes, labels = sample_volumes(
                self.synthesizer, condition, self.seeds[batch], self.settings
            )
            self._seconds += time.perf_counter() - began
            self._count += len(volumes)
            self._first += volumes[: max(0, self._shown - len(self._first))]
            if start == 0:  # later peaks would include the features computed in between
                self._peak = peak_memory(device)
            yield volumes if labels is None else (volumes, labels)

    def first_volumes(self) -> dict[str, Volume]:
        """The first `shown` volumes, for a picture, by seed."""
        plan = self.synthesizer.tokenizer.require_plan()
        pairs = zip(self.seeds, self._first, strict=False)
        return {f"seed {seed}": as_volume(volume.numpy(), plan) for seed, volume in pairs}

    def complete(self, report: GenerationReport) -> GenerationReport:
        """A report on the volumes, with their cost and the generator's settings added."""
        model, first = self.synthesizer.model, self.seeds[0]
        maps = " and label maps" if model.config.condition.map == "label" else ""
        generator = {
            "class": type(model).__name__,
            "model": model.digest,
            "tokenizer": self.synthesizer.tokenizer.digest,
            "sampling": to_dict(self.settings),
            "seeds": [first, first + self._count - 1],
            "conditions": f"attributes{maps} of held-out cases, in their order",
            "batch": min(self.batch_size, len(self.seeds)),
            "device": device_of(self.synthesizer.tokenizer).type,
            "precision": self.synthesizer.precision(self.settings),
        }
        return replace(
            report,
            seconds_per_volume=self._seconds / max(self._count, 1),
            peak_memory=self._peak,
            protocol={**report.protocol, "generator": generator},
        )


def check_conditions(synthesizer: Synthesizer, dataset: PreparedDataset) -> None:
    """Check that prepared cases fit a generator.

    Raises:
        MedarError: another size or number of channels or labels, or other label values if the
            generator takes maps.
    """
    check_fit(synthesizer.tokenizer, dataset)
    theirs, ours = list(dataset.plan.labels), list(synthesizer.tokenizer.require_plan().labels)
    if synthesizer.model.config.condition.map == "label" and theirs != ours:
        raise MedarError(
            f"{dataset.prepared.folder}: label values {theirs}, but the generator was trained with "
            f"{ours}; prepare the data with the generator's own plan"
        )


def conditions(
    synthesizer: Synthesizer, dataset: PreparedDataset, indices: Sequence[int], *, maps: bool = True
) -> Condition:
    """The conditions of some prepared cases; attributes that a case lacks are left open.

    Args:
        synthesizer: the generator.
        dataset: without augmentation.
        indices: of the cases.
        maps: include label maps, if the model takes them.
    """
    config = synthesizer.model.config.condition
    values = [case_values(config.attributes, dataset.prepared[index]) for index in indices]
    shape = (len(indices), len(config.attributes))
    attributes = torch.tensor(values, dtype=torch.float32).view(shape)
    if not maps or config.map != "label":
        return Condition(attributes=attributes)
    labels = torch.stack([dataset[index]["label"][0] for index in indices])
    classes = label_classes(labels, tuple(dataset.plan.labels))
    return Condition(attributes=attributes, map=one_hot(classes, config.map_channels))


@torch.no_grad()
def sample_volumes(
    synthesizer: Synthesizer,
    condition: Condition,
    seeds: Sequence[int],
    settings: SamplingSettings,
    known: KnownTokens | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Sample and decode volumes as `Synthesizer` does, but leave them in the prepared space.

    Args:
        synthesizer: the generator.
        condition: of B volumes.
        seeds: B of them.
        settings: of the sampler.
        known: tokens that are kept, of B volumes.

    Returns:
        (B, C, X, Y, Z) in [-1, 1] and, with a label head, (B, 1, X, Y, Z) of the plan's label
        values; on the CPU.
    """
    model, tokenizer = synthesizer.model, synthesizer.tokenizer
    sampled = sample_and_decode(model, tokenizer, condition, seeds, settings, known=known)
    _, images, labels = zip(*sampled, strict=True)
    volumes = torch.from_numpy(np.stack(images))
    return volumes, None if labels[0] is None else torch.from_numpy(np.stack(labels))


@torch.no_grad()
def reconstructed(tokenizer: Tokenizer, volume: Tensor) -> Tensor:
    """The reconstruction of a prepared volume, (C, X, Y, Z), clipped to [-1, 1]; on the CPU."""
    pyramid = tokenizer.encode(volume[None].to(device_of(tokenizer)))
    return tokenizer.decode_map(pyramid).volume[0].float().cpu().clamp(-1.0, 1.0)


def protocol_of(
    name: str,
    synthesizer: Synthesizer,
    dataset: PreparedDataset,
    settings: SamplingSettings,
    seed: int,
) -> dict[str, Any]:
    """What an evaluation on held-out cases was run with: data, generator and sampling."""
    return {
        "name": name,
        "plan": dataset.plan.digest,
        "cases": dataset.prepared.digest,
        "class": type(synthesizer.model).__name__,
        "model": synthesizer.model.digest,
        "sampling": to_dict(settings),
        "seed": seed,
    }


def notes_on(cases: int, dataset: PreparedDataset) -> list[str]:
    """What to know before values of some held-out cases are compared with others."""
    lines = []
    if cases < FEW:
        number = format_count(cases, "case")
        lines.append(f"{number}, fewer than {FEW}: all values are rough estimates")
    if dataset.plan.mode == "patch":
        lines.append("patches: one of each case, drawn by seed 0")
    return lines


def peak_memory(device: torch.device) -> int | None:
    """Peak memory in bytes: of tensors on a GPU, else of the whole process; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    mib = peak_memory_mib()
    return None if mib is None else int(mib * 2**20)


def spread_over(cases: int, samples: int) -> list[int]:
    """An index of a case for each sample: evenly spaced, or repeated if there are more samples."""
    if samples < cases:
        return [int(k) for k in np.linspace(0, cases - 1, samples).round()]
    return [k % cases for k in range(samples)]
