"""`write_phantoms`: a data set of phantoms on disk, laid out as the Medical Segmentation Decathlon.

Volume k of a seed does not depend on the number of volumes: every subject and every acquisition has
its own random generator.
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from medar.data.manifest import Split
from medar.data.phantoms.anatomy import Anatomy, draw_anatomy
from medar.data.phantoms.render import LABELS, Rendering, render
from medar.data.phantoms.scanners import (
    CONTRASTS,
    PHASES,
    Contrast,
    Phase,
    ct_image,
    draw_grid,
    draw_pose,
    mr_image,
)
from medar.data.phantoms.shapes import Array
from medar.errors import MedarError
from medar.files import read_json, write_json, write_text
from medar.progress import track
from medar.volume import Grid, Provenance, Volume, write_nifti
from medar.volume.marks import PHANTOM

Modality = Literal["ct", "mr"]
NAME = "medar phantoms"
BLOCK = 9
"""The last of every nine volumes is a second scan of the subject of the eighth."""
SPLIT_CYCLE: tuple[Split, ...] = ("train", "train", "val", "train", "train", "test")
"""Splits of successive subjects."""
FINEST, COARSEST = 2.0, 20.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Phantom:
    """One phantom: image, labels and attributes."""

    id: str
    subject: str
    split: Split
    anatomy: Anatomy
    contrast: str
    """Contrast phase of a CT ("native", "arterial", "venous"), or "T1w", "T2w", "PDw"."""
    image: Volume
    label: Volume
    dtype: npt.DTypeLike
    """Voxel type of the image on disk."""

    @property
    def row(self) -> dict[str, Any]:
        """The phantom's line of `attributes.csv`."""
        lesion = self.anatomy.lesion
        contrast = "phase" if self.image.modality == "CT" else "contrast"
        return {
            "id": self.id,
            "subject": self.subject,
            "split": self.split,
            "lesion": lesion.site,
            "lesion_diameter": f"{2 * lesion.radius:.1f}",
            contrast: self.contrast,
            "sex": self.anatomy.sex,
            "age": f"{self.anatomy.age:.1f}",
            "height": f"{self.anatomy.height:.1f}",
            "bmi": f"{self.anatomy.bmi:.1f}",
        }


def write_phantoms(
    folder: str | Path,
    *,
    n: int = 64,
    modality: Modality = "ct",
    seed: int = 0,
    spacing: float = 6.0,
) -> Path:
    """Write a data set of labelled phantoms: `dataset.json`, volumes, `attributes.csv`.

    The same arguments give the same bytes. An existing data set of phantoms is replaced.

    Args:
        folder: to be written; created if absent.
        n: number of volumes; every ninth is a second scan of an earlier subject.
        modality: "ct" or "mr".
        seed: of subjects and acquisitions, at least 0.
        spacing: typical voxel side in mm, 2 to 20; it varies between volumes.

    Returns:
        The path of `dataset.json`.

    Raises:
        MedarError: a value is out of range, or the folder contains other files.
    """
    _check(n, modality, seed, spacing)
    folder = Path(folder)
    clear(folder)
    phantoms = (
        make_phantom(k, modality=modality, seed=seed, spacing=spacing)
        for k in track(range(n), total=n, label="phantoms")
    )
    rows = [write_phantom(folder, phantom) for phantom in phantoms]
    return write_tables(folder, rows, modality, f"seed {seed}, about {spacing:g} mm")


def write_phantom(folder: Path, phantom: Phantom) -> dict[str, Any]:
    """Write the image and the label map of a phantom; its line of `attributes.csv`."""
    name = f"{phantom.id}.nii.gz"
    image, label = folder / "imagesTr" / name, folder / "labelsTr" / name
    write_nifti(image, phantom.image, dtype=phantom.dtype, grid="source", description=PHANTOM)
    write_nifti(label, phantom.label, grid="source", description=PHANTOM)
    return phantom.row


def write_tables(folder: Path, rows: list[dict[str, Any]], modality: Modality, made: str) -> Path:
    """Write `attributes.csv`, and then `dataset.json`, whose path is returned.

    Args:
        folder: of the phantoms.
        rows: their lines of the table.
        modality: of all of them.
        made: with what arguments they were made.
    """
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(folder / "attributes.csv", text.getvalue())
    write_json(folder / "dataset.json", _description(rows, modality, made))
    return folder / "dataset.json"


def make_phantom(
    k: int, *, modality: Modality = "ct", seed: int = 0, spacing: float = 6.0
) -> Phantom:
    """Volume `k` of the data set of a seed (see `write_phantoms`), without writing it."""
    _check(k + 1, modality, seed, spacing)
    anatomy = draw_subject(k, seed)
    rng = np.random.default_rng([seed, 1, k, 0 if modality == "ct" else 1])
    stored = draw_grid(rng, anatomy, spacing)
    rendering = render(anatomy, stored.to_ras(), pose=draw_pose(rng))
    if modality == "ct":
        phase = PHASES[int(rng.integers(len(PHASES)))]
        image = ct_image(rendering, anatomy, phase, rng)
        return assembled(k, anatomy, rendering, stored, image, phase, np.int16)
    contrast = CONTRASTS[int(rng.integers(len(CONTRASTS)))]
    image = mr_image(rendering, contrast, rng)
    dtype: npt.DTypeLike = np.int16 if rng.random() < 0.5 else np.float32
    return assembled(k, anatomy, rendering, stored, image, contrast, dtype)


def draw_subject(k: int, seed: int) -> Anatomy:
    """The subject of volume `k`."""
    return draw_anatomy(np.random.default_rng([seed, 0, _subject(k)]))


def assembled(
    k: int,
    anatomy: Anatomy,
    rendering: Rendering,
    stored: Grid,
    image: Array,
    contrast: Phase | Contrast,
    dtype: npt.DTypeLike,
) -> Phantom:
    """Volume `k` from its subject, its rendering and an image of that, (X, Y, Z).

    Args:
        k: number of the volume.
        anatomy: the subject.
        rendering: gives labels and grid.
        stored: the grid on disk.
        image: on the rendering's grid.
        contrast: a phase of CT, or a contrast of MR.
        dtype: voxel type of the image on disk.
    """
    number = _subject(k)
    subject = f"phantom_{number:04d}"
    name = subject + "_b" if k % BLOCK == BLOCK - 1 else subject
    source = Provenance(path=name, format="phantom", grid=stored, dtype=str(np.dtype(dtype)))
    affine, modality = rendering.grid.affine, "CT" if contrast in PHASES else "MR"
    return Phantom(
        id=name,
        subject=subject,
        split=SPLIT_CYCLE[number % len(SPLIT_CYCLE)],
        anatomy=anatomy,
        contrast=contrast,
        image=Volume(array=image[None], affine=affine, modality=modality, provenance=source),
        label=Volume(array=rendering.labels[None], affine=affine, provenance=source),
        dtype=dtype,
    )


def _subject(k: int) -> int:
    """The number of the subject of volume `k`."""
    return (BLOCK - 1) * (k // BLOCK) + min(k % BLOCK, BLOCK - 2)


def _check(n: int, modality: str, seed: int, spacing: float) -> None:
    if modality not in get_args(Modality):
        raise MedarError(f"modality must be {' or '.join(get_args(Modality))}, got {modality!r}")
    check_numbers(n, seed, spacing)


def check_numbers(n: int, seed: int, spacing: float) -> None:
    """Check number, seed and spacing of phantoms.

    Raises:
        MedarError: one is out of range.
    """
    if n < 1:
        raise MedarError(f"n must be at least 1, got {n}")
    if seed < 0:
        raise MedarError(f"seed must be at least 0, got {seed}")
    if not FINEST <= spacing <= COARSEST:
        raise MedarError(f"spacing must be {FINEST:g} to {COARSEST:g} mm, got {spacing:g}")


def clear(folder: Path) -> None:
    """Remove an existing data set of phantoms, complete or not; raise for other files."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise MedarError(f"{folder}: must be a folder, got a file")
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    foreign = [path for path in files if not _ours(path.relative_to(folder))]
    if foreign:
        raise MedarError(
            f"{folder}: holds {foreign[0].relative_to(folder)}, which is not part of a "
            "phantom data set; name an empty folder"
        )
    described = folder / "dataset.json"
    if described.exists():
        found = read_json(described)
        name = found.get("name") if isinstance(found, dict) else None
        if name != NAME:
            raise MedarError(f"{folder}: holds the data set {name!r}; name an empty folder")
        described.unlink()
    for path in files:
        path.unlink(missing_ok=True)


def _ours(path: Path) -> bool:
    """Whether `write_phantoms` writes a file of this relative path."""
    if path.as_posix() in ("dataset.json", "attributes.csv"):
        return True
    written = path.parent.as_posix() in ("imagesTr", "labelsTr")
    return written and path.name.endswith(".nii.gz") and "phantom_" in path.name


def _description(rows: list[dict[str, Any]], modality: Modality, made: str) -> dict[str, Any]:
    """The content of `dataset.json`."""
    return {
        "name": NAME,
        "description": f"Synthetic {modality.upper()} torsos ({made})",
        "reference": "medar data phantoms",
        "licence": "Apache-2.0, synthetic",
        "tensorImageSize": "3D",
        "modality": {"0": "CT" if modality == "ct" else "MRI"},
        "labels": {"0": "background", **{str(value): name for value, name in LABELS.items()}},
        "numTraining": len(rows),
        "numTest": 0,
        "training": [
            {"image": f"./imagesTr/{r['id']}.nii.gz", "label": f"./labelsTr/{r['id']}.nii.gz"}
            for r in rows
        ],
        "test": [],
    }
