"""A small 3D network that is trained to tell two sets of volumes apart, cross-validated.

Every volume is scored once, by a network that was trained on the other folds. Volumes of one group
(the scans of a subject) are always in the same fold. Training sees random crops, shifted and
flipped left to right, so that the network has to learn what the sets differ in rather than single
volumes; scores are computed on whole volumes.

Volumes are compared as files hold them (`medar.evaluation.written`).

B batch, C channels, X Y Z voxels, N volumes.
"""

from collections.abc import Hashable, Iterator, Sequence
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medar.errors import MedarError

Integers = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float64]

FOLDS = 5
WIDTH = 12
"""Channels of the first convolution; those after it have twice and four times as many."""
CROP = 32
"""Maximum side of the crops that the network is trained on, in voxels."""
SHIFT = 2
"""Voxels by which a crop may reach beyond the volume, whose border is repeated."""
STEPS = 300
BATCH = 16
LEARNING_RATE = 5e-3
WEIGHT_DECAY = 1e-2

PROTOCOL = {
    "network": f"3 convolutions of stride 2, {WIDTH} to {4 * WIDTH} channels, batch norm; linear "
    "classifier of the means of all three",
    "training": f"{STEPS} steps of {BATCH} random crops of at most {CROP} voxels per side, flipped "
    f"left to right, AdamW, learning rate {LEARNING_RATE:g} (one cycle)",
    "folds": f"at most {FOLDS}, by subject; each volume is scored whole by the network that was "
    "not trained on its fold",
}
"""How a network is trained and tested, for reports."""


class Discriminator(nn.Module):
    """(B, C, X, Y, Z) in [-1, 1] to (B,) log-odds of the second set.

    The classifier sees the spatial mean of every layer's activations, so that fine texture reaches
    it without passing through the later layers.
    """

    def __init__(self, channels: int, width: int = WIDTH) -> None:
        super().__init__()
        widths = (channels, width, 2 * width, 4 * width)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(before, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm3d(after),
                nn.ReLU(),
            )
            for before, after in pairwise(widths)
        )
        self.norm = nn.BatchNorm1d(sum(widths[1:]))
        self.classifier = nn.Linear(sum(widths[1:]), 1)

    def forward(self, volumes: Tensor) -> Tensor:
        means = []
        for layer in self.layers:
            volumes = layer(volumes)
            means.append(volumes.mean(dim=(2, 3, 4)))
        logits: Tensor = self.classifier(self.norm(torch.cat(means, dim=1)))
        return logits[:, 0]


class VolumeSet(NamedTuple):
    """Volumes to be told apart from others."""

    volumes: Tensor
    """(N, C, X, Y, Z) in [-1, 1], of any floating type."""
    groups: Sequence[Hashable]
    """N of them: volumes of equal groups are always in the same fold."""


class Scores(NamedTuple):
    """Cross-validated scores of one set: higher is more like the second one."""

    values: Floats
    """(N,) log-odds."""
    folds: Integers
    """(N,)."""


def discriminate(
    first: VolumeSet, second: VolumeSet, seed: int, device: torch.device
) -> tuple[Scores, Scores]:
    """Train one network per fold and score every volume of both sets.

    Args:
        first: a set of at least 2 volumes in at least 2 groups.
        second: another set; it should have the same size.
        seed: of folds, weights and crops: equal seeds give equal scores on the same device.
        device: where the networks are trained.

    Raises:
        MedarError: all volumes of a set are of one group.
    """
    random = np.random.default_rng(seed)
    count = min(FOLDS, len(set(first.groups)), len(set(second.groups)))
    if count < 2:
        raise MedarError(
            "Turing test: needs real volumes of at least 2 subjects, so that none is in training "
            "and test at once; add cases, or leave out --turing"
        )
    folds = [assign_folds(one.groups, count, random) for one in (first, second)]
    values = [np.zeros(len(one.volumes)) for one in (first, second)]
    for fold in range(count):
        known = [one.volumes[fold != its] for one, its in zip((first, second), folds, strict=True)]
        network = _train(known[0], known[1], random, device)
        for one, its, scores in zip((first, second), folds, values, strict=True):
            scores[its == fold] = _score(network, one.volumes[its == fold], device)
    return Scores(values[0], folds[0]), Scores(values[1], folds[1])


def assign_folds(groups: Sequence[Hashable], count: int, random: np.random.Generator) -> Integers:
    """A fold for each volume: groups in random order, each into the smallest fold so far."""
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    blocks, sizes = list(members.values()), np.zeros(count, int)
    folds = np.zeros(len(groups), int)
    for position in random.permutation(len(blocks)):
        smallest = int(sizes.argmin())
        folds[blocks[position]] = smallest
        sizes[smallest] += len(blocks[position])
    return folds


def _train(
    first: Tensor, second: Tensor, random: np.random.Generator, device: torch.device
) -> Discriminator:
    """A network trained to give `second` higher scores than `first`."""
    with torch.random.fork_rng(devices=[]):  # leaves the caller's random state as it is
        torch.manual_seed(int(random.integers(2**63)))
        network = Discriminator(first.shape[1])
    network.to(device).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, total_steps=STEPS, pct_start=0.1
    )
    truth = torch.tensor([0.0, 1.0], device=device).repeat_interleave(BATCH // 2)
    draws = [_endless(len(one), random) for one in (first, second)]
    for _ in range(STEPS):
        crops = [
            _crop(one[index], random)
            for one, draw in zip((first, second), draws, strict=True)
            for index in islice(draw, BATCH // 2)
        ]
        logits = network(torch.stack(crops).to(device, torch.float32))
        loss = nn.functional.binary_cross_entropy_with_logits(logits, truth)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def _score(network: Discriminator, volumes: Tensor, device: torch.device) -> Floats:
    """Log-odds of whole volumes, each averaged with its mirror image."""
    scores = []
    for one in volumes:
        volume = one[None].to(device, torch.float32)
        scores.append(float(network(volume) + network(volume.flip(2))) / 2)
    return np.array(scores)


def _endless(count: int, random: np.random.Generator) -> Iterator[int]:
    """Indices in random order, again and again: each occurs once before any does twice."""
    while True:
        yield from (int(index) for index in random.permutation(count))


def _crop(volume: Tensor, random: np.random.Generator) -> Tensor:
    """A random crop of (C, X, Y, Z), flipped left to right with probability 1/2."""
    for axis, side in enumerate(volume.shape[1:], 1):
        size = min(side, CROP)
        start = int(random.integers(-SHIFT, side - size + SHIFT + 1))
        indices = torch.arange(start, start + size).clamp(0, side - 1)
        volume = volume.index_select(axis, indices)
    return volume.flip(1) if random.random() < 0.5 else volume
