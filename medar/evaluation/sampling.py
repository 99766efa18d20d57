"""Volumes that a generator makes for an evaluation: in memory, in the prepared space of its plan.

Each is made under the conditions of a held-out case - its attributes and, for models that take one,
its label map - so that the set is asked to be what the held-out volumes are.

B batch, C channels, X Y Z voxels, A attributes.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medar.data.loading import PreparedDataset
from medar.devices import device_of
from medar.errors import MedarError
from medar.evaluation.frechet import FEW
from medar.evaluation.generated import picture
from medar.evaluation.generation import Batch, GenerationReport, HeldOut, held_out
from medar.evaluation.reconstruction import check_fit
from medar.generator.attributes import case_values
from medar.generator.conditions import Condition
from medar.generator.folder import Loaded, model_digest
from medar.generator.maps import label_classes, one_hot
from medar.generator.model import Known
from medar.generator.sampling import SamplingSettings, sample
from medar.progress import track
from medar.settings import to_dict
from medar.synthesis.memory import batch_size as fitting
from medar.synthesis.synthesizer import seeds_from
from medar.tokenizer.inference import decoded_arrays
from medar.tokenizer.pyramid import TokenPyramid
from medar.tokenizer.tokenizer import Tokenizer
from medar.volume import Volume

SHOWN = 8
"""Volumes that are kept for a picture."""


class Sampled:
    """Generated volumes, batch by batch, and what they cost.

    Sample i has the seed `seed + i` and the conditions of one of the held-out cases, in their order
    and over again.

    Args:
        loaded: the generator.
        prepared: a folder that `prepare` filled, of the generator's size and labels.
        split: the held-out cases.
        samples: how many; default as many as held-out cases, 20 at least.
        seed: of the first.
        sampling: how tokens are chosen; default the generator's own settings.
        batch_size: volumes at once, fewer where memory is short.

    Raises:
        MedarError: no sample, a negative seed, settings that do not fit the model, or cases that
            do not.
    """

    def __init__(
        self,
        loaded: Loaded,
        prepared: str | Path,
        *,
        split: HeldOut = "test",
        samples: int | None = None,
        seed: int = 0,
        sampling: SamplingSettings | None = None,
        batch_size: int = 4,
    ) -> None:
        for name, value in (("samples", samples), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise MedarError(f"{name} {value}: a whole number from 1 is needed")
        self.loaded, self.batch_size = loaded, batch_size
        self.settings = sampling or loaded.sampling
        self.settings.check(loaded.model.schedule)
        cases = held_out(prepared, split)
        assert isinstance(cases.dataset, PreparedDataset)
        self.dataset = cases.dataset
        check_conditions(loaded, self.dataset)
        self.seeds = seeds_from(seed, max(len(cases), FEW) if samples is None else samples)
        self._places = [cases.indices[k] for k in evenly(len(cases), len(self.seeds))]
        self._seconds = 0.0
        self._done = 0
        self._peak: int | None = None
        self._first: list[Tensor] = []

    def __iter__(self) -> Iterator[Batch]:
        """Volumes (B, C, X, Y, Z), with a label head beside their label maps (B, 1, X, Y, Z)."""
        total = -(-len(self.seeds) // self.batch_size)
        return track(self._batches(), total=total, label="synthesize", unit="batch")

    def _batches(self) -> Iterator[Batch]:
        self._seconds, self._done, self._first = 0.0, 0, []
        device = device_of(self.loaded.tokenizer)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        for start in range(0, len(self.seeds), self.batch_size):
            chosen = slice(start, start + self.batch_size)
            condition = conditions(self.loaded, self.dataset, self._places[chosen])
            began = time.perf_counter()
            volumes, labels = draw(self.loaded, condition, self.seeds[chosen], self.settings)
            self._seconds += time.perf_counter() - began
            self._done += len(volumes)
            self._first += volumes[: max(0, SHOWN - len(self._first))]
            if start == 0:  # later ones would count what is computed of volumes in between
                self._peak = peak_memory(device)
            yield volumes if labels is None else (volumes, labels)

    def pictures(self) -> dict[str, Volume]:
        """The first `SHOWN` of those that were made, for a picture, by seed."""
        plan = self.loaded.tokenizer.require_plan()
        pairs = zip(self.seeds, self._first, strict=False)
        return {f"seed {seed}": picture(volume.numpy(), plan) for seed, volume in pairs}

    def described(self, report: GenerationReport) -> GenerationReport:
        """A report on the volumes, completed by what they cost and what they were made by."""
        model, first = self.loaded.model, self.seeds[0]
        maps = " and label maps" if model.config.condition.map == "label" else ""
        about = {
            "class": type(model).__name__,
            "model": model_digest(model),
            "tokenizer": self.loaded.tokenizer.digest,
            "sampling": to_dict(self.settings),
            "seeds": [first, first + self._done - 1],
            "conditions": f"attributes{maps} of held-out cases, in their order",
            "batch": min(self.batch_size, len(self.seeds)),
            "device": device_of(self.loaded.tokenizer).type,
        }
        return replace(
            report,
            seconds_per_volume=self._seconds / max(self._done, 1),
            peak_memory=self._peak,
            protocol={**report.protocol, "generator": about},
        )


def check_conditions(loaded: Loaded, dataset: PreparedDataset) -> None:
    """Refuse prepared cases that a generator is not made for.

    Raises:
        MedarError: another size or number of channels or labels, or other label values where the
            generator takes maps.
    """
    check_fit(loaded.tokenizer, dataset)
    theirs, ours = list(dataset.plan.labels), list(loaded.tokenizer.require_plan().labels)
    if loaded.model.config.condition.map == "label" and theirs != ours:
        raise MedarError(
            f"{dataset.prepared.folder}: label values {theirs}, the generator is made for {ours}; "
            "prepare the data with the generator's own plan"
        )


def conditions(
    loaded: Loaded, dataset: PreparedDataset, places: Sequence[int], *, maps: bool = True
) -> Condition:
    """The conditions of some prepared cases; what is not known of a case is left open.

    Args:
        loaded: the generator.
        dataset: without augmentation.
        places: of the cases.
        maps: take label maps too, if the model does.
    """
    asked = loaded.model.config.condition
    values = [case_values(asked.attributes, dataset.prepared[place]) for place in places]
    attributes = torch.tensor(values, dtype=torch.float32).view(len(places), len(asked.attributes))
    if not maps or asked.map != "label":
        return Condition(attributes=attributes)
    labels = torch.stack([dataset[place]["label"][0] for place in places])
    classes = label_classes(labels, tuple(dataset.plan.labels))
    return Condition(attributes=attributes, map=one_hot(classes, asked.map_channels))


@torch.no_grad()
def draw(
    loaded: Loaded,
    condition: Condition,
    seeds: Sequence[int],
    settings: SamplingSettings,
    known: Known | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Sample and decode volumes as `Synthesizer` does, and leave them in the prepared space.

    Args:
        loaded: the generator.
        condition: of B volumes.
        seeds: B of them.
        settings: how tokens are chosen.
        known: tokens that are given, of B volumes.

    Returns:
        (B, C, X, Y, Z) in [-1, 1] and, with a label head, (B, 1, X, Y, Z) of the plan's label
        values; on the CPU.
    """
    model, tokenizer = loaded.model, loaded.tokenizer
    device, plan = device_of(tokenizer), tokenizer.require_plan()
    made = []
    size = fitting(model, settings)
    for start in range(0, len(seeds), size):
        part = slice(start, start + size)
        given = known and Known(mask=known.mask[part], latent=known.latent[part]).to(device)
        tokens = sample(model, condition[part].to(device), seeds[part], settings, known=given)
        for row in tokens:
            pyramid = TokenPyramid.from_flat(row[None], model.schedule, model.codes)
            made.append(decoded_arrays(tokenizer.decode_map(pyramid), plan))
    volumes = torch.from_numpy(np.stack([one.image for one in made])).clamp(-1.0, 1.0)
    labels = [torch.from_numpy(one.label) for one in made if one.label is not None]
    return volumes, torch.stack(labels) if labels else None


@torch.no_grad()
def reconstructed(tokenizer: Tokenizer, volume: Tensor) -> Tensor:
    """A prepared volume, (C, X, Y, Z), through the tokenizer, held to [-1, 1]; on the CPU."""
    pyramid = tokenizer.encode(volume[None].to(device_of(tokenizer)))
    return tokenizer.decode_map(pyramid).volume[0].float().cpu().clamp(-1.0, 1.0)


def notes(cases: int, dataset: PreparedDataset) -> list[str]:
    """What to know before figures of some held-out cases are compared."""
    said = []
    if cases < FEW:
        said.append(f"{cases} cases, fewer than {FEW}: all figures are rough")
    if dataset.plan.mode == "patch":
        said.append("patches: one of each case, drawn by seed 0")
    return said


def peak_memory(device: torch.device) -> int | None:
    """Bytes held at most: on a GPU by tensors, else by the whole process since it began.

    None where the system does not say.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def evenly(cases: int, samples: int) -> list[int]:
    """A case for each sample: some, evenly over all, or all over again."""
    if samples < cases:
        return [int(k) for k in np.linspace(0, cases - 1, samples).round()]
    return [k % cases for k in range(samples)]
