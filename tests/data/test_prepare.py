"""Preparing data sets: only missing entries are built, and a bad case does not stop the rest."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medar.data import prepare as module
from medar.data.cache import ArrayCache
from medar.data.manifest import Case, Manifest
from medar.data.plan import IntensityRule, Plan
from medar.data.prepare import prepare
from medar.data.prepared import Prepared
from medar.errors import MedarError
from medar.volume import Volume, write_nifti

MakeDataset = Callable[..., Manifest]
MakePlan = Callable[..., Plan]
MR = {"MR": IntensityRule(kind="percentiles", low=0.5, high=99.5)}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the images and labels that are built, in order."""
    names: list[str] = []
    put = ArrayCache.put

    def spy(cache: ArrayCache, key: str, *rest: Any, **options: Any) -> None:
        names.append(key.split("-")[0])
        put(cache, key, *rest, **options)

    monkeypatch.setattr(ArrayCache, "put", spy)
    return names


def times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "arrays").iterdir()}


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_prepared_cases_contain_everything_for_training(
    tmp_path: Path, dataset: MakeDataset, plan: MakePlan
) -> None:
    manifest = dataset(3)
    cases = (replace(manifest.cases[0], annotated=(2,), attributes={"age": 61}),)
    cases += (replace(manifest.cases[1], label=None), manifest.cases[2])
    manifest = manifest.with_cases(cases)
    done = prepare(manifest, plan(), tmp_path / "out", workers=1)
    assert (done.made, done.kept, done.failed) == (3, 0, {})
    prepared = Prepared(tmp_path / "out")
    first, second, third = (prepared[k] for k in range(3))
    assert (first.id, first.annotated, first.attributes) == ("c0", (2,), {"age": 61})
    assert (second.annotated, second.label) == ((), None)
    assert (third.split, third.annotated, third.modality) == ("val", (1, 2), "CT")
    assert Manifest.load(tmp_path / "out" / "manifest.jsonl") == manifest
    assert Plan.load(tmp_path / "out" / "plan.yaml") == plan()
    assert (tmp_path / "out" / "failed.jsonl").read_text() == ""


def test_a_second_run_prepares_nothing(
    tmp_path: Path, dataset: MakeDataset, plan: MakePlan, made: list[str]
) -> None:
    manifest = dataset(3)
    prepare(manifest, plan(), tmp_path / "out", workers=1)
    before, listing = times(tmp_path / "out"), (tmp_path / "out" / "cases.jsonl").read_bytes()
    assert sorted(made) == ["image"] * 3 + ["label"] * 3
    for case in manifest:
        os.utime(case.images[0], ns=(5, 5))  # touched, not changed
    done = prepare(manifest, plan(), tmp_path / "out", workers=1)
    assert (done.made, done.kept) == (0, 3)
    assert len(made) == 6
    assert times(tmp_path / "out") == before
    assert (tmp_path / "out" / "cases.jsonl").read_bytes() == listing


@pytest.mark.parametrize(
    ("mode", "changes", "remade"),
    [
        ("volume", {"intensity": {"CT": IntensityRule(kind="window", low=0, high=9)}}, {"image"}),
        ("volume", {"interpolation": "bspline"}, {"image"}),
        ("volume", {"label_interpolation": "nearest"}, {"label"}),
        ("volume", {"labels": {1: "a", 2: "b", 3: "c"}}, {"label"}),
        ("volume", {"labels": {1: "other", 2: "names"}}, set()),
        ("volume", {"downsampling": (1, 1, 1)}, set()),
        ("volume", {"size": (8, 8, 10)}, {"image", "label"}),
        ("volume", {"spacing": (1.0, 1.0, 2.0)}, {"image", "label"}),
        ("patch", {"size": (4, 4, 4)}, set()),
        ("patch", {"mode": "volume"}, {"image", "label"}),
    ],
)
def test_only_entries_that_depend_on_a_setting_are_rebuilt(
    tmp_path: Path,
    dataset: MakeDataset,
    plan: MakePlan,
    made: list[str],
    mode: str,
    changes: dict[str, Any],
    remade: set[str],
) -> None:
    manifest = dataset(2)
    prepare(manifest, plan(mode=mode), tmp_path / "out", workers=1)
    before = times(tmp_path / "out")
    made.clear()
    done = prepare(manifest, plan(**{"mode": mode, **changes}), tmp_path / "out", workers=1)
    assert set(made) == remade
    assert done.made == (2 if remade else 0)
    after = times(tmp_path / "out")
    # What nobody refers to any more is gone.
    assert len(after) == len(before) == 4
    assert {n for n in after if n not in before} == {n for n in after if n[:5] in remade}
    assert all(after[name] == before[name] for name in after if name in before)
    assert len(Prepared(tmp_path / "out")) == 2


def test_a_changed_label_file_rebuilds_only_its_entry(
    tmp_path: Path, dataset: MakeDataset, plan: MakePlan, made: list[str]
) -> None:
    manifest = dataset(3)
    prepare(manifest, plan(), tmp_path / "out", workers=1)
    before = times(tmp_path / "out")
    made.clear()
    label = manifest["c1"].label
    assert label is not None
    write_nifti(label, Volume.from_array(np.ones((8, 7, 6), np.uint8), np.eye(4)))
    done = prepare(manifest, plan(), tmp_path / "out", workers=1)
    assert (made, done.made, done.kept) == (["label"], 1, 2)
    assert len(before.items() & times(tmp_path / "out").items()) == 5
    prepared = Prepared(tmp_path / "out")
    values = prepared.label(prepared.find("c1"))
    assert values is not None
    assert values.sum() == 8 * 7 * 6


def test_a_changed_split_rewrites_only_the_case_list(
    tmp_path: Path, dataset: MakeDataset, plan: MakePlan, made: list[str]
) -> None:
    manifest = dataset(3)
    prepare(manifest, plan(), tmp_path / "out", workers=1)
    made.clear()
    other = manifest.with_cases(tuple(replace(case, split="test") for case in manifest))
    prepare(other, plan(), tmp_path / "out", workers=1)
    assert made == []
    assert len(Prepared(tmp_path / "out", split="test")) == 3


def test_another_modality_moves_the_foreground_of_image_and_label(
    tmp_path: Path, dataset: MakeDataset, plan: MakePlan, made: list[str]
) -> None:
    manifest = dataset(1)
    window = IntensityRule(kind="window", low=-1000, high=1000)
    chosen = plan(centre="foreground", intensity={"other": window})
    prepare(manifest, chosen, tmp_path / "out", workers=1)
    made.clear()
    as_mr = manifest.with_cases((replace(manifest.cases[0], modality="MR"),))
    prepare(as_mr, chosen, tmp_path / "out", workers=1)
    assert sorted(made) == ["image", "label"]


def test_removed_cases_are_pruned_from_the_cache(
    tmp_path: Path, dataset: MakeDataset, plan: MakePlan
) -> None:
    manifest = dataset(3)
    prepare(manifest, plan(), tmp_path / "out", workers=1)
    stale = tmp_path / "out" / "arrays" / "image-0.b2nd"
    stale.write_bytes(b"cut short by a power cut")
    fewer = manifest.with_cases(manifest.cases[:1])
    prepare(fewer, plan(), tmp_path / "out", workers=1)
    assert len(times(tmp_path / "out")) == 2
    assert [case["id"] for case in lines(tmp_path / "out" / "cases.jsonl")[1:]] == ["c0"]


def test_a_truncated_entry_is_rebuilt(
    tmp_path: Path, dataset: MakeDataset, plan: MakePlan, made: list[str]
) -> None:
    manifest = dataset(2)
    prepare(manifest, plan(), tmp_path / "out", workers=1)
    entry = sorted((tmp_path / "out" / "arrays").glob("image-*"))[0]
    whole = entry.read_bytes()
    entry.write_bytes(whole[:-7])
    made.clear()
    prepare(manifest, plan(), tmp_path / "out", workers=1)
    assert made == ["image"]
    assert entry.read_bytes() == whole


def test_bad_cases_are_skipped(tmp_path: Path, dataset: MakeDataset, plan: MakePlan) -> None:
    manifest = dataset(6)
    c0, c1, c2, c3, c4, c5 = manifest.cases
    c0.images[0].write_bytes(c0.images[0].read_bytes()[:60])
    assert c1.label
    write_nifti(c1.label, Volume.from_array(np.ones((8, 7, 5), np.uint8), np.eye(4)))
    assert c2.label
    write_nifti(c2.label, Volume.from_array(np.full((8, 7, 6), 9, np.uint8), np.eye(4)))
    c3.images[0].unlink()
    c4 = replace(c4, modality="MR")
    write_nifti(c4.images[0], Volume.from_array(np.full((8, 7, 6), 3, np.float32), np.eye(4)))
    manifest = manifest.with_cases((c0, c1, c2, c3, c4, c5))
    rules = {**plan().intensity, **MR}
    done = prepare(manifest, plan(intensity=rules), tmp_path / "out", workers=1)
    assert (done.made, done.kept) == (1, 0)
    failed = {line["id"]: line for line in lines(tmp_path / "out" / "failed.jsonl")}
    assert {k: line["reason"] for k, line in failed.items()} == done.failed
    assert set(failed) == {"c0", "c1", "c2", "c3", "c4"}
    assert str(c0.images[0]) in done.failed["c0"]
    assert "must have its image's shape 8x7x6, got 8x7x5" in done.failed["c1"]
    assert "label values 9 are not among" in done.failed["c2"]
    assert "No such file" in done.failed["c3"]
    assert "constant volume" in done.failed["c4"]
    assert all("\n" not in reason for reason in done.failed.values())
    assert all(line["trace"] is None for line in failed.values())
    assert [case["id"] for case in lines(tmp_path / "out" / "cases.jsonl")[1:]] == ["c5"]
    assert len(times(tmp_path / "out")) == 2


def test_unexpected_errors_keep_their_traceback(
    tmp_path: Path, dataset: MakeDataset, plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = dataset(2)
    real = module.read_image

    def broken(case: Case, options: Any) -> Volume:
        return real(case, options) if case.id == "c1" else real(None, options)  # type: ignore

    monkeypatch.setattr(module, "read_image", broken)
    done = prepare(manifest, plan(), tmp_path / "out", workers=1)
    assert done.failed == {
        "c0": "unexpected AttributeError: 'NoneType' object has no attribute 'images'"
    }
    assert "Traceback" in lines(tmp_path / "out" / "failed.jsonl")[0]["trace"]


def test_no_prepared_case_is_an_error(tmp_path: Path, dataset: MakeDataset, plan: MakePlan) -> None:
    manifest = dataset(2)
    with pytest.raises(MedarError, match=r"no case could be prepared; the first: .*'MR'|'CT'"):
        prepare(manifest, plan(intensity=MR), tmp_path / "out", workers=1)


def test_channels_and_patches(tmp_path: Path, dataset: MakeDataset, plan: MakePlan) -> None:
    manifest = dataset(2)
    both = tuple(replace(c, images=c.images * 2) for c in manifest)
    manifest = replace(manifest, cases=both, channels=("A", "B"))
    rule = plan().intensity["CT"]
    chosen = plan(mode="patch", channels=("A", "B"), intensity={"A": rule, "B": rule})
    prepare(manifest, chosen, tmp_path / "out", workers=1)
    prepared = Prepared(tmp_path / "out")
    image = prepared.image(prepared[0])
    assert image.shape == (2, 8, 7, 6)
    assert np.array_equal(image[0], image[1])


def test_stored_label_positions_have_their_label(
    tmp_path: Path, dataset: MakeDataset, plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCATIONS", 20)
    prepare(dataset(1), plan(mode="patch"), tmp_path / "out", workers=1)
    prepared = Prepared(tmp_path / "out")
    values, key = prepared.label(prepared[0]), prepared[0].label
    assert values is not None
    assert key is not None
    meta = prepared.cache.meta(key)
    for value in (1, 2):
        assert meta["voxels"][str(value)] == (values == value).sum()
        indices = np.frombuffer(meta["locations"][str(value)], np.int32).reshape(-1, 3)
        assert len(np.unique(indices, axis=0)) == 20
        assert (values[0][tuple(indices.T)] == value).all()


def test_integers_and_floats_give_the_same_plan(
    tmp_path: Path, dataset: MakeDataset, plan: MakePlan
) -> None:
    prepare(dataset(1), plan(spacing=(1, 1, 1)), tmp_path / "out", workers=1)
    assert len(Prepared(tmp_path / "out")) == 1


def test_other_folders_are_refused(tmp_path: Path, dataset: MakeDataset, plan: MakePlan) -> None:
    manifest = dataset(1)
    with pytest.raises(MedarError, match="in: holds other files"):
        prepare(manifest, plan(), tmp_path / "in", workers=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(MedarError, match="file: is a file"):
        prepare(manifest, plan(), tmp_path / "file", workers=1)
    # What a run leaves that is killed at its first file does not stand in the way.
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".tmp-x-plan.yaml").write_text("half")
    prepare(manifest, plan(), tmp_path / "out", workers=1)
    assert not list((tmp_path / "out").rglob(".tmp-*"))


@pytest.mark.parametrize(
    "named", ["raw/x.raw", "../x.raw", ".", "raw", "%n", "LIST\n.\n..", "a\0b"]
)
@pytest.mark.parametrize("ending", [".mhd", ".nhdr"])
def test_a_header_that_names_no_file_is_set_aside(
    tmp_path: Path, dataset: MakeDataset, plan: MakePlan, named: str, ending: str
) -> None:
    manifest = dataset(2)
    odd = tmp_path / "in" / f"odd{ending}"
    (tmp_path / "in" / "raw").mkdir()
    if ending == ".mhd":
        odd.write_text(f"NDims = 3\nDimSize = 2 2 2\nElementDataFile = {named}\n")
    else:
        fields = "type: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw"
        odd.write_text(f"NRRD0004\n{fields}\ndata file: {named}\n\n")
    cases = (*manifest.cases, Case(id="odd", images=(odd,), modality="CT", split="train"))
    done = prepare(manifest.with_cases(cases), plan(), tmp_path / "out", workers=1)
    assert (done.made, list(done.failed)) == (2, ["odd"])
    assert done.failed["odd"].startswith(f"{odd}: ")


@pytest.mark.parametrize("damage", ["truncated", "fractions", "no volume"])
def test_a_damaged_label_does_not_drop_its_image(
    tmp_path: Path, dataset: MakeDataset, plan: MakePlan, damage: str
) -> None:
    manifest = dataset(3)
    label = manifest.cases[1].label
    assert label is not None
    good = label.read_bytes()
    if damage == "fractions":
        write_nifti(label, Volume.from_array(np.full((8, 7, 6), 0.5, np.float32), np.eye(4)))
    else:
        label.write_bytes(good[: len(good) // 2] if damage == "truncated" else b"x")
    out = tmp_path / "out"
    done = prepare(manifest, plan(), out, workers=1)
    assert (done.made, done.failed, list(done.unlabelled)) == (3, {}, ["c1"])
    assert done.unlabelled["c1"].startswith(f"{label}: ")
    prepared = Prepared(out)
    assert [case.label is None for case in map(prepared.find, ("c0", "c1", "c2"))] == [0, 1, 0]
    assert prepared.find("c1").annotated == ()
    assert prepared.image(prepared.find("c1")).shape == (1, 8, 8, 8)
    (line,) = map(json.loads, (out / "failed.jsonl").read_text().splitlines())
    assert (line["id"], line["part"]) == ("c1", "label")
    again = prepare(manifest, plan(), out, workers=1)
    assert (again.made, again.kept, list(again.unlabelled)) == (0, 3, ["c1"])
    label.write_bytes(good)
    repaired = prepare(manifest, plan(), out, workers=1)
    assert (repaired.made, repaired.kept, repaired.unlabelled) == (1, 2, {})
    assert Prepared(out).find("c1").label is not None
