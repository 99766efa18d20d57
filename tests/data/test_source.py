"""Source volumes: on the grid of their case, in [-1, 1], unknown outside; degraded volumes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from medar.data.hashes import HashIndex
from medar.data.plan import IntensityRule, Plan
from medar.data.prepare import prepare
from medar.data.prepared import Prepared
from medar.data.source import (
    AIR_TO_BONE,
    EACH_VOLUME,
    CaseSources,
    Degradation,
    Source,
    degraded,
    prepare_source,
    rule_for,
)
from medar.data.sources import read_manifest
from medar.errors import MedarError
from medar.volume import Grid, Volume, write_nifti

WINDOW = IntensityRule(kind="window", low=0.0, high=100.0)
PLAN = Plan(
    spacing=(1.0, 1.0, 1.0),
    mode="volume",
    size=(8, 8, 8),
    downsampling=(2, 2, 2),
    intensity={"MR": IntensityRule(kind="percentiles", low=1, high=99)},
)
SLICES = Degradation(slice_thickness=4.0)


def ramp(sides: tuple[int, int, int] = (8, 8, 8)) -> np.ndarray:
    return np.linspace(0, 100, int(np.prod(sides)), dtype=np.float32).reshape(sides)


def write(folder: Path, *names: str, array: np.ndarray | None = None) -> Path:
    for name in names:
        volume = Volume.from_array(ramp() if array is None else array, np.eye(4))
        write_nifti(folder / f"{name}.nii.gz", volume)
    return folder


def test_a_source_on_its_own_grid_is_only_normalised() -> None:
    volume = Volume.from_array(ramp(), np.eye(4))
    array = prepare_source(volume, WINDOW, volume.grid)
    assert (array.shape, array.dtype) == ((1, 8, 8, 8), np.float32)
    np.testing.assert_allclose(array[0], ramp() / 50 - 1, atol=1e-5)


def test_what_lies_outside_a_source_is_unknown() -> None:
    volume = Volume.from_array(ramp(), np.eye(4))
    moved = np.eye(4)
    moved[0, 3] = 5
    array = prepare_source(volume, WINDOW, Grid(shape=(8, 8, 8), affine=moved))
    known = ~np.isnan(array[0])
    assert known[:3].all()
    assert not known[3:].any()
    np.testing.assert_allclose(array[0, :3], ramp()[5:] / 50 - 1, atol=1e-5)
    moved[0, 3] = 50
    with pytest.raises(MedarError, match="no common voxel"):
        prepare_source(volume, WINDOW, Grid(shape=(8, 8, 8), affine=moved))


def test_a_source_has_one_channel() -> None:
    volume = Volume(array=np.zeros((2, 4, 4, 4), np.float32), affine=np.eye(4))
    with pytest.raises(MedarError, match="2 channels; a source volume has one"):
        prepare_source(volume, WINDOW, volume.grid)


def test_intensities_follow_the_plan_or_the_modality() -> None:
    assert rule_for(PLAN, "MR") == PLAN.intensity["MR"]
    assert rule_for(PLAN, "CT") == AIR_TO_BONE
    assert rule_for(PLAN, None) == EACH_VOLUME
    assert Source(degradation=SLICES).rule(PLAN, "MR") == PLAN.intensity["MR"]
    assert Source(modality="CT", intensity=WINDOW).rule(PLAN, "CT") == WINDOW


@pytest.mark.parametrize("both", [True, False])
def test_sources_are_pairs_or_degraded(both: bool) -> None:
    with pytest.raises(MedarError, match="set either intensity, for pairs, or degradation"):
        Source(**({"intensity": WINDOW, "degradation": SLICES} if both else {}))
    with pytest.raises(MedarError, match="set at least one"):
        Degradation()


def test_cases_find_the_source_of_their_name(tmp_path: Path) -> None:
    data = read_manifest(write(tmp_path / "data", "a", "b"), modality="MR")
    prepare(data, PLAN, tmp_path / "prepared", workers=1)
    prepared = Prepared(tmp_path / "prepared")
    write(tmp_path / "other", "c", "a")
    write(tmp_path / "other", "b", array=ramp() * 2)
    sources = CaseSources(prepared, read_manifest(tmp_path / "other", modality="CT"), HashIndex())
    assert sources.about == Source(modality="CT", intensity=AIR_TO_BONE)
    for case, factor in ((prepared[0], 1), (prepared[1], 2)):
        np.testing.assert_allclose(sources(case)[0], factor * ramp() / 1000, atol=1e-5)
    keys = [sources.key(prepared[k]) for k in range(2)]
    write(tmp_path / "other", "b")
    assert [sources.key(prepared[k]) for k in range(2)] == [keys[0], keys[0]]


def test_pairs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    data = read_manifest(write(tmp_path / "data", "a", "b"), modality="MR")
    prepare(data, PLAN, tmp_path / "prepared", workers=1)
    prepared = Prepared(tmp_path / "prepared")
    write(tmp_path / "other", "a", "c")
    with pytest.raises(MedarError, match=r"no source for 1 of 2 cases, such as b; .* here"):
        CaseSources(prepared, read_manifest(tmp_path / "other"), HashIndex())
    (tmp_path / "mixed.jsonl").write_text(
        '{"id": "a", "image": "data/a.nii.gz", "modality": "CT"}\n'
        '{"id": "b", "image": "data/b.nii.gz", "modality": "MR"}\n'
    )
    mixed = CaseSources(prepared, read_manifest(tmp_path / "mixed.jsonl"), HashIndex())
    with pytest.raises(MedarError, match=r"b.nii.gz: MR, but the first source is CT"):
        mixed(prepared[1])


def test_thick_slices_lose_detail_across_them_only() -> None:
    across = torch.rand(1, 1, 1, 16).expand(1, 8, 8, 16) * 2 - 1
    low = degraded(across, SLICES, (1.0, 1.0, 1.0), [0])
    assert low.shape == across.shape
    means = across[0, 0, 0].view(4, 4).mean(1)
    # The centres of four slices of 4 mm lie between the second and third voxel of each.
    found = low[0, 0, 0].view(4, 4)[:, 1:3].mean(1)
    torch.testing.assert_close(found[1:3], means[1:3], atol=0.15, rtol=0)
    assert low[0, 0, 0].diff().abs().max() < across[0, 0, 0].diff().abs().max()
    along = across.permute(0, 3, 1, 2).contiguous()
    torch.testing.assert_close(degraded(along, SLICES, (1.0, 1.0, 1.0), [0]), along)
    # The spacing decides how many voxels a slice has, at least one.
    torch.testing.assert_close(degraded(across, SLICES, (1.0, 1.0, 4.0), [0]), across)
    torch.testing.assert_close(degraded(across, SLICES, (1.0, 1.0, 9.0), [0]), across)
    whole = degraded(across, Degradation(slice_thickness=99), (1.0, 1.0, 1.0), [0])
    torch.testing.assert_close(whole, across.mean().expand_as(whole))


def test_noise_has_its_deviation_and_its_seed() -> None:
    image = torch.zeros(1, 16, 16, 16)
    noisy = degraded(image, Degradation(noise=0.2), (1.0, 1.0, 1.0), [1])
    assert abs(float(noisy.std()) - 0.2) < 0.01
    assert torch.equal(noisy, degraded(image, Degradation(noise=0.2), (1.0, 1.0, 1.0), [1]))
    assert not torch.equal(noisy, degraded(image, Degradation(noise=0.2), (1.0, 1.0, 1.0), [2]))
    assert degraded(image, Degradation(noise=9), (1.0, 1.0, 1.0), [1]).abs().max() == 1
