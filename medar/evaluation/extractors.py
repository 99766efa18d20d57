"""Feature extractors behind one interface: volumes in, a row of numbers for each out.

`radiomics-v1` and `texture-v1` need no weights. `medicalnet-v1` and `radimagenet-v1` are networks
whose weights come from a local file; nothing is downloaded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from medar.errors import MedarError
from medar.evaluation import features, texture
from medar.files import file_digest

LEARNT = ("medicalnet-v1", "radimagenet-v1")
"""Extractors that need a weights file."""

EXTRACTORS = (features.NAME, texture.NAME, *LEARNT)
"""All there are; label maps have `shape-v1` besides."""

DEFAULT = (features.NAME, texture.NAME)


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """Features of volumes, and what to call them."""

    name: str
    """Name and version."""
    compute: Callable[[Tensor], Tensor]
    """(B, C, X, Y, Z) in [-1, 1] to (B, F) float64 on the CPU."""
    weights: str | None = None
    """Hash of the weights file, where there is one."""


def make_extractor(
    name: str, weights: str | Path | None = None, device: torch.device | str = "cpu"
) -> Extractor:
    """The extractor of a name.

    Args:
        name: one of `EXTRACTORS`.
        weights: the file of a learnt extractor: resnet_10_23dataset.pth of MedicalNet, or
            ResNet50.pt of RadImageNet.
        device: where a learnt extractor computes.

    Raises:
        MedarError: an unknown name, a learnt extractor without its file or with another's.
    """
    check_extractors((name,), weights if name in LEARNT else None)
    if name == features.NAME:
        return Extractor(name=name, compute=features.radiomics)
    if name == texture.NAME:
        return Extractor(name=name, compute=texture.texture)
    assert weights is not None  # was checked
    from medar.evaluation.learnt import MedicalNet, RadImageNet

    network = {"medicalnet-v1": MedicalNet, "radimagenet-v1": RadImageNet}[name](weights)
    return Extractor(name=name, compute=network.to(device), weights=file_digest(weights))


def check_extractors(names: tuple[str, ...], weights: str | Path | None) -> None:
    """Refuse a choice of extractors that cannot be; one at most is learnt, as there is one file.

    Raises:
        MedarError: no name, an unknown one, two learnt ones, one without its weights, or weights
            that nothing needs.
    """
    learnt = [name for name in names if name in LEARNT]
    odd = [name for name in names if name not in EXTRACTORS]
    if not names:
        raise MedarError(f"no extractor is named; allowed are {', '.join(EXTRACTORS)}")
    if odd:
        raise MedarError(f"extractor {odd[0]!r}: allowed are {', '.join(EXTRACTORS)}")
    if len(learnt) > 1:
        raise MedarError(f"extractors {' and '.join(learnt)}: one with weights at a time")
    if learnt and weights is None:
        raise MedarError(f"extractor {learnt[0]}: its weights are needed, a local file (--weights)")
    if weights is not None and not learnt:
        raise MedarError(f"{weights}: weights are for the extractors {' and '.join(LEARNT)}")


def make_extractors(
    names: tuple[str, ...], weights: str | Path | None, device: torch.device | str
) -> list[Extractor]:
    """Extractors of several names.

    Raises:
        MedarError: see `check_extractors` and `make_extractor`.
    """
    check_extractors(names, weights)
    return [make_extractor(name, weights, device) for name in dict.fromkeys(names)]
