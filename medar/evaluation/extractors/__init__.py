"""Feature extractors: volumes in, one row of numbers per volume out.

`radiomics-v2` and `texture-v2` need no weights. `medicalnet-v1` and `radimagenet-v1` are networks
whose weights come from a local file; nothing is downloaded.

An extractor is chosen by name. Packages add theirs with `@register_extractor`, or with an entry
point in the group "medar.extractors":

    @register_extractor("mean-v1")
    def mean_intensity(volumes: Tensor) -> Tensor:
        return volumes.mean(dim=(2, 3, 4)).double().cpu()

A registered class is an extractor with weights: it is constructed with the path of their file, and
its instances are called.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medar.devices import any_device
from medar.errors import MedarError
from medar.files import file_digest
from medar.registry import Registry

EXTRACTORS: Registry[Any] = Registry(
    "extractor",
    "medar.extractors",
    {
        "radiomics-v2": "medar.evaluation.extractors.handcrafted:radiomics",
        "texture-v2": "medar.evaluation.extractors.handcrafted:texture",
        "medicalnet-v1": "medar.evaluation.extractors.learnt:MedicalNet",
        "radimagenet-v1": "medar.evaluation.extractors.learnt:RadImageNet",
    },
)
"""Extractors of volumes by name; label maps also have `shape-v2` (see `shape_features`)."""

register_extractor = EXTRACTORS.register

DEFAULT = ("radiomics-v2", "texture-v2")


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """An extractor that is ready to use."""

    name: str
    """Name and version."""
    compute: Callable[[Tensor], Tensor]
    """(B, C, X, Y, Z) in [-1, 1] to (B, F) float64 on the CPU."""
    weights: str | None = None
    """Hash of the weights file, if there is one."""
    source: tuple[str, str] | None = None
    """Path of the weights file and name of the device; None without weights."""

    def __reduce__(self) -> tuple[Callable[..., "Extractor"], tuple[Any, ...]]:
        """Other processes load the weights on their own device."""
        if self.source is None:
            return partial(Extractor, name=self.name, compute=self.compute), ()
        return _load, (self.name, *self.source, self.weights)


def _load(name: str, weights: str, device: str, digest: str) -> Extractor:
    """An extractor, in another process than the one that made it."""
    made = make_extractor(name, weights, device)
    if made.weights != digest:
        raise MedarError(
            f"{weights}: not the file that the command started with (digest {made.weights}, "
            f"expected {digest}); run the command again"
        )
    return made


def needs_weights(name: str) -> bool:
    """Whether the extractor of a name is constructed with a weights file.

    Raises:
        MedarError: an unknown name.
    """
    return isinstance(EXTRACTORS[name], type)


def check_extractors(names: tuple[str, ...], weights: str | Path | None) -> None:
    """Check names, and that exactly one of them needs the weights file if there is one.

    Raises:
        MedarError: no name or an unknown one, several extractors with weights, one without its
            file, or a file that none of them needs.
    """
    if not names:
        raise MedarError(f"extractors must not be empty; known extractors: {', '.join(EXTRACTORS)}")
    learnt = [name for name in dict.fromkeys(names) if needs_weights(name)]
    if len(learnt) > 1:
        raise MedarError(
            f"extractors {' and '.join(learnt)}: there is one weights file, so only one extractor "
            "with weights can be used at a time"
        )
    if learnt and weights is None:
        raise MedarError(f"extractor {learnt[0]} needs its weights, a local file (--weights)")
    if weights is not None and not learnt:
        every = [name for name in EXTRACTORS if needs_weights(name)]
        raise MedarError(f"{weights}: weights are for the extractors {' and '.join(every)}")


def make_extractor(
    name: str, weights: str | Path | None = None, device: torch.device | str = "cpu"
) -> Extractor:
    """The extractor of a name.

    Args:
        name: one of `EXTRACTORS`.
        weights: the file of a learnt extractor: resnet_10_23dataset.pth of MedicalNet, or
            ResNet50.pt of RadImageNet. Ignored by extractors without weights.
        device: where a learnt extractor computes.

    Raises:
        MedarError: an unknown name, a learnt extractor without its file or with another's.
    """
    extractor = EXTRACTORS[name]
    if not needs_weights(name):
        return Extractor(name=name, compute=extractor)
    check_extractors((name,), weights)
    assert weights is not None  # checked above
    network = extractor(weights)
    if isinstance(network, nn.Module):
        network = network.to(any_device(device))
    return Extractor(
        name=name,
        compute=network,
        weights=file_digest(weights),
        source=(str(Path(weights).absolute()), str(device)),
    )


def make_extractors(
    names: tuple[str, ...], weights: str | Path | None, device: torch.device | str
) -> list[Extractor]:
    """The extractors of several names.

    Raises:
        MedarError: see `check_extractors` and `make_extractor`.
    """
    check_extractors(names, weights)
    return [make_extractor(name, weights, device) for name in dict.fromkeys(names)]
