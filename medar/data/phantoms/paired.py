"""`write_paired_phantoms`: several modalities of the same anatomies, voxel by voxel.

    OUT/ct, OUT/t1w, OUT/t2w, OUT/pdw

Each is a data set of phantoms of its own. Files of the same name show the same subject in the same
pose on the same grid, so that one modality is the exact ground truth of a translation from another,
except for noise, texture and the gain field, which every scan draws anew. CT is native: MR does not
tell a contrast phase.
"""

from pathlib import Path

import numpy as np

from medar.data.phantoms.dataset import (
    Phantom,
    assembled,
    check_numbers,
    clear,
    draw_subject,
    write_phantom,
    write_tables,
)
from medar.data.phantoms.render import render
from medar.data.phantoms.scanners import CONTRASTS, ct_image, draw_grid, draw_pose, mr_image
from medar.errors import MedarError
from medar.progress import track

CT = "ct"
PAIRED = (CT, *(contrast.lower() for contrast in CONTRASTS))
"""The folders, one per modality."""


def write_paired_phantoms(
    folder: str | Path, *, n: int = 64, seed: int = 0, spacing: float = 6.0
) -> Path:
    """Write one data set of phantoms per modality, with the same cases in each.

    The same arguments give the same bytes. Existing data sets of phantoms are replaced.

    Args:
        folder: to be written, with a folder per modality; created if absent.
        n: number of volumes of each; every ninth is a second scan of an earlier subject.
        seed: of subjects and acquisitions, at least 0.
        spacing: typical voxel side in mm, 2 to 20; it varies between cases.

    Returns:
        The folder.

    Raises:
        MedarError: a value is out of range, or the folder contains other files.
    """
    check_numbers(n, seed, spacing)
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise MedarError(f"{folder}: must be a folder, got a file")
    foreign = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
    foreign = [name for name in foreign if name not in PAIRED]
    if foreign:
        raise MedarError(
            f"{folder}: holds {foreign[0]}, which is not part of paired phantoms; name an empty "
            "folder"
        )
    for name in PAIRED:
        clear(folder / name)
    rows: dict[str, list[dict[str, str]]] = {name: [] for name in PAIRED}
    for k in track(range(n), total=n, label="phantoms"):
        for name, phantom in make_paired_phantoms(k, seed=seed, spacing=spacing).items():
            rows[name].append(write_phantom(folder / name, phantom))
    for name in PAIRED:
        made = f"{name}, paired, seed {seed}, about {spacing:g} mm"
        write_tables(folder / name, rows[name], "ct" if name == CT else "mr", made)
    return folder


def make_paired_phantoms(k: int, *, seed: int = 0, spacing: float = 6.0) -> dict[str, Phantom]:
    """Volume `k` of each modality (see `write_paired_phantoms`), by folder, without writing it."""
    check_numbers(k + 1, seed, spacing)
    anatomy = draw_subject(k, seed)
    rng = np.random.default_rng([seed, 1, k, 2])
    stored = draw_grid(rng, anatomy, spacing)
    rendering = render(anatomy, stored.to_ras(), pose=draw_pose(rng))
    image = ct_image(rendering, anatomy, "native", rng)
    made = {CT: assembled(k, anatomy, rendering, stored, image, "native", np.int16)}
    for contrast in CONTRASTS:
        image = mr_image(rendering, contrast, rng)
        made[contrast.lower()] = assembled(
            k, anatomy, rendering, stored, image, contrast, np.float32
        )
    return made
