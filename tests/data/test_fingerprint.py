"""Fingerprints: correct statistics, measured once."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medar.data import fingerprint as module
from medar.data.fingerprint import QUANTILES, Fingerprint, take_fingerprint
from medar.data.hashes import HashIndex
from medar.data.manifest import Case, Manifest
from medar.errors import MedarError
from medar.volume import ReadOptions, Volume, write_nifti

Write = Callable[..., Path]
MakeDataset = Callable[..., Manifest]


def take(manifest: Manifest, cached: Fingerprint | None = None, workers: int = 1) -> Fingerprint:
    return take_fingerprint(
        manifest, ReadOptions(), workers=workers, hashes=HashIndex(), cached=cached
    )


def of(*cases: Case, **changes: tuple[str, ...]) -> Manifest:
    return Manifest(root=Path("in"), source="MSD", cases=cases, **changes)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the cases that were measured, not read from the cache."""
    ids: list[str] = []
    measure = module._measure

    def spy(case: Case, options: ReadOptions, names: Mapping[int, str]) -> module.CaseFingerprint:
        ids.append(case.id)
        return measure(case, options, names)

    monkeypatch.setattr(module, "_measure", spy)
    return ids


def test_statistics_of_a_case(write: Write) -> None:
    image = write("a.nii.gz", np.arange(120.0).reshape(6, 5, 4) - 20, spacing=(1.0, 2.0, 5.0))
    values = np.zeros((6, 5, 4), np.uint8)
    values[0, 0], values[1] = 3, 1
    label = write("l.nii.gz", values, spacing=(1.0, 2.0, 5.0))
    taken = take(of(Case(id="a", images=(image,), label=label)))
    (case,) = taken.cases
    assert (case.shape, case.spacing, case.modality) == ((6, 5, 4), (1, 2, 5), None)
    assert case.label_ml == {1: 0.2, 3: 0.04}
    # The smallest value is background.
    assert case.quantiles[0][QUANTILES.index(50.0)] == np.median(np.arange(1, 120) - 20)
    assert case.quantiles[0][-1] == 99
    assert taken.extents.tolist() == [[6, 10, 20]]


def test_the_shape_is_along_ras_axes(tmp_path: Path) -> None:
    from nibabel import Nifti1Image, save

    affine = np.array([[0, 0, 2.0, 0], [3, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    save(Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), affine), tmp_path / "a.nii")
    (case,) = take(of(Case(id="a", images=(tmp_path / "a.nii",)))).cases
    assert (case.shape, case.spacing) == ((4, 2, 3), (2, 3, 1))


def test_channels_in_one_file_or_in_several(tmp_path: Path, write: Write) -> None:
    first, second = write("1.nii.gz"), write("2.nii.gz")
    stack = np.random.default_rng(0).normal(size=(2, 6, 5, 4)).astype(np.float32)
    write_nifti(tmp_path / "4d.nii.gz", Volume(array=stack, affine=np.eye(4)))
    cases = (
        Case(id="several", images=(first, second)),
        Case(id="one", images=(tmp_path / "4d.nii.gz",)),
    )
    taken = take(of(*cases, channels=("T1", "T2")))
    assert [len(case.quantiles) for case in taken.cases] == [2, 2]


def test_json_round_trip(tmp_path: Path, dataset: MakeDataset) -> None:
    taken = replace(take(dataset(2)), failed={"x": "why"})
    taken.save(tmp_path / "f.json")
    assert Fingerprint.load(tmp_path / "f.json") == taken
    (tmp_path / "f.json").write_text('{"cases": 3}')
    with pytest.raises(MedarError, match=r"f\.json: cases must be a list, got 3"):
        Fingerprint.load(tmp_path / "f.json")


def test_unchanged_cases_are_not_measured_again(dataset: MakeDataset, measured: list[str]) -> None:
    manifest = dataset(3)
    first = take(manifest)
    assert measured == ["c0", "c1", "c2"]
    assert take(manifest, first) == first
    assert len(measured) == 3
    label = manifest["c1"].label
    assert label is not None
    write_nifti(label, Volume.from_array(np.ones((8, 7, 6), np.uint8), np.eye(4)))
    second = take(manifest, first)
    assert measured[3:] == ["c1"]
    assert second.cases[1].label_ml == {1: 0.336}
    assert (second.cases[0], second.cases[2]) == (first.cases[0], first.cases[2])


def test_a_renamed_case_is_not_measured_again(dataset: MakeDataset, measured: list[str]) -> None:
    manifest = dataset(2)
    first = take(manifest)
    renamed = replace(manifest.cases[0], id="other", subject="other")
    second = take(manifest.with_cases((manifest.cases[1], renamed)), first)
    assert [case.id for case in second.cases] == ["c1", "other"]
    assert len(measured) == 2


def test_changed_reading_options_or_modality_are_measured_again(
    dataset: MakeDataset, measured: list[str]
) -> None:
    manifest = dataset(1)
    first = take(manifest)
    as_mr = manifest.with_cases((replace(manifest.cases[0], modality="MR"),))
    assert take(as_mr, first).cases[0].modality == "MR"
    options = ReadOptions(nonfinite="min")
    take_fingerprint(manifest, options, workers=1, hashes=HashIndex(), cached=first)
    assert measured == ["c0"] * 3


def test_bad_cases_are_reported_and_the_others_continue(dataset: MakeDataset, write: Write) -> None:
    manifest = dataset(1)
    bad = write("bad.nii.gz")
    bad.write_bytes(b"\x1f\x8bnothing")
    case = manifest.cases[0]
    cases = (
        replace(case, id="unreadable", images=(bad,)),
        replace(case, id="absent", images=(bad.with_name("none.nii.gz"),)),
        replace(case, id="other_grid", label=write("small.nii.gz", np.zeros((2, 2, 2), np.uint8))),
        case,
    )
    manifest = manifest.with_cases(tuple(replace(c, subject=c.id) for c in cases))
    taken = take(manifest)
    assert [case.id for case in taken.cases] == ["c0"]
    assert set(taken.failed) == {"unreadable", "absent", "other_grid"}
    assert "no such file" in taken.failed["absent"]
    assert take(manifest, taken) == taken


def test_a_file_that_cannot_be_hashed_fails_its_case(
    dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = dataset(2)
    refused = manifest["c0"].images[0]
    real = HashIndex.__getitem__

    def refuse(index: HashIndex, path: Path) -> str:
        if path == refused:
            raise MedarError(f"{path}: cannot be read (Permission denied)")
        return real(index, path)

    monkeypatch.setattr(HashIndex, "__getitem__", refuse)
    taken = take(manifest)
    assert [case.key == "" for case in taken.cases] == [True, False]
    monkeypatch.setattr(module, "_measure", lambda case, options: 1 / 0)
    assert set(take(manifest, taken).failed) == {"c0"}


def test_no_readable_case_is_an_error(dataset: MakeDataset) -> None:
    manifest = dataset(2)
    for case in manifest:
        case.images[0].write_bytes(b"")
    with pytest.raises(MedarError, match="no case can be read; the first: "):
        take(manifest)
