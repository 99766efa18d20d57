"""Meters of a panel: what each method makes of labelled organs and of inserted structures.

Contrast recovered of an inserted structure s, with C its contrast and R what reconstructs:

    (C(R(volume + s)) - C(R(volume))) / (C(volume + s) - C(volume))

1 if nothing is lost, 0 if the structure has vanished. The differences remove the anatomy beneath
it, so that the truth is exact.

B batch, C channels, X Y Z voxels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from medar.data.loading import Item, PreparedDataset
from medar.devices import device_of
from medar.errors import MedarError
from medar.evaluation.reconstruction.organs import Intensities, organ_scores
from medar.evaluation.reconstruction.panel_report import CaseOrgan, CaseStructure
from medar.evaluation.reconstruction.structures import (
    Structure,
    StructureSettings,
    insert_structures,
)
from medar.evaluation.similarity import FidelityMeter
from medar.evaluation.written import as_written, file_step
from medar.losses import to_classes
from medar.segmentation.dice import DiceMeter
from medar.segmentation.segmenter import Segmenter

Reconstruct = Callable[[Tensor], Tensor]
"""(B, C, X, Y, Z) in [-1, 1] on the CPU to its reconstruction, of the same shape."""

Dice = dict[str, float | None]

UNCLIPPED = 0.5
"""Fraction of the contrast that must be left in the original, which is clipped to [-1, 1]."""


def reconstructed(name: str, reconstruct: Reconstruct, volumes: Tensor) -> Tensor:
    """A method's result, float32 on the CPU.

    Raises:
        MedarError: it has another shape, or values that are not finite.
    """
    with torch.no_grad():
        made = reconstruct(volumes).float().cpu()
    if made.shape != volumes.shape:
        raise MedarError(
            f"{name}: must return the shape of its batch, {tuple(volumes.shape)}, got "
            f"{tuple(made.shape)}"
        )
    if not made.isfinite().all():
        raise MedarError(f"{name}: returned values that are not finite")
    return made


class OrganMeter:
    """Fidelity, and rows of labels and cases.

    Args:
        methods: what reconstructs, by name.
        dataset: of the cases.
        intensities: of the data set.
        segmenter: in evaluation mode; None for no Dice.
    """

    def __init__(
        self,
        methods: Mapping[str, Reconstruct],
        dataset: PreparedDataset,
        intensities: Intensities,
        segmenter: Segmenter | None,
    ) -> None:
        self.methods, self.dataset = methods, dataset
        self.intensities, self.segmenter = intensities, segmenter
        self.step = file_step(dataset)
        self.fidelity = {name: FidelityMeter() for name in methods}
        self.rows: list[CaseOrgan] = []

    @torch.no_grad()
    def update(self, batch: Item) -> None:
        """Add a batch of the loader."""
        volumes, indices = as_written(batch["image"], self.step), batch["index"]
        before = self._dice(batch, volumes)
        original = self.intensities.restore(volumes, indices)
        for name, reconstruct in self.methods.items():
            made = as_written(reconstructed(name, reconstruct, volumes), self.step)
            self.fidelity[name].update(volumes, made, self.intensities.scale[indices])
            after = self._dice(batch, made)
            restored = self.intensities.restore(made, indices)
            for row in range(len(volumes) if "label" in batch else 0):
                pair = original[row], restored[row]
                self._add_case(name, batch, row, pair, before[row], after[row])

    def _add_case(
        self, method: str, batch: Item, row: int, pair: tuple[Tensor, Tensor],
        before: Dice, after: Dice,
    ) -> None:  # fmt: skip
        """Add a case; `pair` is the original and its reconstruction, (C, X, Y, Z) each."""
        plan, case = self.dataset.plan, self.dataset.prepared[int(batch["index"][row])]
        names = {name: value for value, name in plan.labels.items() if value in case.annotated}
        for channel, (original, made) in enumerate(zip(*pair, strict=True)):
            suffix = f" ({plan.channels[channel]})" if len(plan.channels) > 1 else ""
            label = batch["label"][row, 0]
            for score in organ_scores(original, made, label, names, plan.spacing):
                about = {**vars(score), "label": score.label + suffix}
                self.rows.append(
                    CaseOrgan(
                        **about,
                        method=method,
                        case=case.id,
                        dice_original=before.get(score.label),
                        dice=after.get(score.label),
                    )
                )

    def _dice(self, batch: Item, volumes: Tensor) -> list[Dice]:
        """Dice of the segmenter for each volume of a batch."""
        if self.segmenter is None:
            return [{} for _ in volumes]
        labels = self.dataset.plan.labels
        logits = self.segmenter(volumes.to(device_of(self.segmenter))).cpu()
        classes = to_classes(batch["label"], list(labels))
        found = []
        for row in range(len(volumes)):
            meter, one = DiceMeter(list(labels.values())), slice(row, row + 1)
            meter.update(logits[one], classes[one], batch["annotated"][one])
            found.append(meter.result())
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """The slice through an inserted structure, to draw."""

    structure: Structure
    contrast: float
    slices: dict[str, Tensor]
    """(X, Y) in [-1, 1], the first channel: of the volume with the structure, under "original",
    and of each method's reconstruction."""


class StructureMeter:
    """Rows of inserted structures.

    Args:
        methods: what reconstructs, by name.
        dataset: of the cases.
        intensities: of the data set.
        settings: which structures are inserted.
    """

    def __init__(
        self,
        methods: Mapping[str, Reconstruct],
        dataset: PreparedDataset,
        intensities: Intensities,
        settings: StructureSettings,
    ) -> None:
        self.methods, self.dataset = methods, dataset
        self.intensities, self.settings = intensities, settings
        self.step = file_step(dataset)
        self.contrasts = settings.contrasts or default_contrasts(intensities)
        self.voxel = float(torch.tensor(dataset.plan.spacing).double().prod() ** (1 / 3))
        self.rows: list[CaseStructure] = []
        self.shown: list[Shown] = []

    @torch.no_grad()
    def update(self, item: Item, batch_size: int) -> None:
        """Insert every structure into a case, one at a time, and measure what is left of it."""
        volume, index = as_written(item["image"], self.step), int(item["index"])
        scale = self.intensities.scale[index]
        structures = insert_structures(
            volume.numpy(),
            self.dataset.plan.spacing,
            (max(map(abs, self.contrasts)) / scale).tolist(),
            self.settings,
            [self.settings.seed, index],
        )
        base = {
            name: as_written(reconstructed(name, reconstruct, volume[None]), self.step)
            for name, reconstruct in self.methods.items()
        }
        first = not self.rows
        pairs = [(one, contrast) for contrast in self.contrasts for one in structures]
        for start in range(0, len(pairs), batch_size):
            part = pairs[start : start + batch_size]
            added = [one.added_to(volume, value / scale) for one, value in part]
            volumes = as_written(torch.stack(added), self.step)
            made = {
                name: as_written(reconstructed(name, reconstruct, volumes), self.step)
                for name, reconstruct in self.methods.items()
            }
            for row, (structure, contrast) in enumerate(part):
                after = {name: one[row] for name, one in made.items()}
                self._add(index, structure, contrast, (volume, volumes[row]), base, after)
                if first:
                    self._show(structure, contrast, {"original": volumes[row], **after})

    def _add(
        self, index: int, structure: Structure, contrast: float, pair: tuple[Tensor, Tensor],
        base: dict[str, Tensor], made: dict[str, Tensor],
    ) -> None:  # fmt: skip
        """Add the rows of one structure in one case."""
        scale, (without, with_it) = self.intensities.scale[index], pair
        truth = float(structure.contrast(with_it[None]) - structure.contrast(without[None]))
        whole = contrast * float((1 / scale).mean()) * structure.own_contrast
        unclipped = abs(truth) >= UNCLIPPED * abs(whole)
        for name, one in made.items():
            left = float(structure.contrast(one[None]) - structure.contrast(base[name]))
            self.rows.append(
                CaseStructure(
                    method=name,
                    case=self.dataset.prepared[index].id,
                    shape=structure.shape,
                    contrast=contrast,
                    voxels=structure.size,
                    mm=structure.size * self.voxel,
                    recovered=left / truth if unclipped else None,
                )
            )

    def _show(self, structure: Structure, contrast: float, volumes: dict[str, Tensor]) -> None:
        """Keep the slice through a sphere of the strongest contrast."""
        if structure.shape == "sphere" and contrast == max(self.contrasts):
            z = round(structure.centre[2])
            slices = {name: one[0, :, :, z].clone() for name, one in volumes.items()}
            self.shown.append(Shown(structure=structure, contrast=contrast, slices=slices))


def default_contrasts(intensities: Intensities) -> tuple[float, ...]:
    """50 and 200 HU, or 0.1 and 0.3 of the first case's window, darker and brighter."""
    faint, clear = (50.0, 200.0)
    if intensities.unit != "HU":
        window = 2 * float(intensities.scale[0, 0])
        faint, clear = 0.1 * window, 0.3 * window
    return -clear, -faint, faint, clear
