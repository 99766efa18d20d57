"""The torch data set: items depend only on seed, epoch and index, not on the worker."""

import gc
import pickle
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medar.data.augmentation import Augmentation
from medar.data.loading import UNKNOWN, PreparedDataset, make_loader, set_epoch
from medar.data.manifest import Manifest
from medar.data.plan import Plan
from medar.data.prepare import prepare
from medar.data.prepared import Prepared
from medar.errors import MedarError
from medar.volume import Volume, write_nifti

MakeDataset = Callable[..., Manifest]
MakePlan = Callable[..., Plan]
STRONG = Augmentation(affine_probability=1, intensity_probability=1)
Prepare = Callable[..., Path]


@pytest.fixture
def prepared(tmp_path: Path, dataset: MakeDataset, plan: MakePlan) -> Prepare:
    """Prepare a tiny data set with a changed plan."""

    def make(n: int = 3, change: Any = None, **changes: Any) -> Path:
        manifest = dataset(n)
        manifest = manifest.with_cases(change(manifest.cases)) if change else manifest
        return prepare(manifest, plan(**changes), tmp_path / "out", workers=1).folder

    return make


def test_items_of_whole_volumes(prepared: Prepare) -> None:
    folder = prepared()
    data, source = PreparedDataset(folder), Prepared(folder)
    assert len(data) == 3
    for index in range(3):
        item = data[index]
        assert set(item) == {"image", "label", "annotated", "index"}
        assert np.array_equal(item["image"], source.image(source[index]))
        values = source.label(source[index])
        assert values is not None
        assert np.array_equal(item["label"], values)
        assert (item["image"].dtype, item["label"].dtype) == (torch.float32, torch.int8)
        assert item["annotated"].tolist() == [True, True]
        assert item["index"] == index


def test_one_split(prepared: Prepare) -> None:
    data = PreparedDataset(prepared(), split="val")
    assert [data.prepared[k].id for k in range(len(data))] == ["c2"]


@pytest.mark.parametrize("mode", ["volume", "patch"])
def test_unannotated_cases_are_unknown(prepared: Prepare, mode: str) -> None:
    def change(cases: Any) -> Any:
        return (replace(cases[0], label=None), replace(cases[1], annotated=(2,)), cases[2])

    data = PreparedDataset(prepared(change=change, mode=mode, size=(6, 6, 6)))
    assert (data[0]["label"] == UNKNOWN).all()
    assert data[0]["label"].shape == (1, 6, 6, 6)
    assert [data[k]["annotated"].tolist() for k in range(3)] == [
        [False, False],
        [False, True],
        [True, True],
    ]
    batch = next(iter(make_loader(data, batch_size=3)))
    assert batch["label"].dtype == torch.int8


def test_the_ignore_label_is_unknown(prepared: Prepare) -> None:
    folder = prepared(1, labels={1: "kidney left"}, ignore_label=2)
    item = PreparedDataset(folder)[0]
    assert sorted(item["label"].unique().tolist()) == [-1, 0, 1]
    assert item["annotated"].tolist() == [True]


def test_items_without_labels(prepared: Prepare) -> None:
    folder = prepared(1, lambda cases: tuple(replace(c, label=None) for c in cases), labels={})
    assert set(PreparedDataset(folder)[0]) == {"image", "index"}


def test_patches_are_cut_from_image_and_label_alike(prepared: Prepare) -> None:
    folder = prepared(mode="patch", size=(4, 2, 4))
    data, source = PreparedDataset(folder, seed=1), Prepared(folder)
    starts = set()
    for epoch in range(10):
        data.set_epoch(epoch)
        item = data[0]
        image, label = source.image(source[0])[0], source.label(source[0])
        assert label is not None
        assert item["image"].shape == item["label"].shape == (1, 4, 2, 4)
        windows = np.lib.stride_tricks.sliding_window_view(image, (4, 2, 4))
        (start,) = np.argwhere((windows == item["image"][0].numpy()).all(axis=(3, 4, 5)))
        box = tuple(slice(s, s + n) for s, n in zip(start, (4, 2, 4), strict=True))
        assert np.array_equal(item["label"][0], label[0][box])
        starts.add(tuple(start))
    assert len(starts) > 5


def test_volumes_smaller_than_a_patch_are_padded(prepared: Prepare) -> None:
    folder = prepared(1, mode="patch", size=(12, 4, 8))
    item, source = PreparedDataset(folder)[0], Prepared(folder)
    assert item["image"].shape == (1, 12, 4, 8)
    image = source.image(source[0])
    assert (item["image"][:, :2] == -1).all()
    assert (item["image"][:, 10:] == -1).all()
    assert (item["image"][..., [0, 7]] == -1).all()
    assert (item["label"][:, :2] == 0).all()
    inner = item["image"][0, 2:10, :, 1:7].numpy()
    assert any(np.array_equal(inner, image[0, :, k : k + 4]) for k in range(4))


def lesion(cases: Any) -> Any:
    """A label map with two labels of one voxel each and a large ignored region."""
    values = np.zeros((8, 7, 6), np.uint8)
    values[4:] = 9
    values[1, 1, 1], values[2, 6, 5] = 1, 2
    for case in cases:
        write_nifti(case.label, Volume.from_array(values, np.eye(4)))
    return cases


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_fraction_of_the_patches_contains_a_label(prepared: Prepare, share: float) -> None:
    folder = prepared(1, lesion, mode="patch", size=(2, 2, 2), ignore_label=9)
    data = PreparedDataset(folder, foreground=share, seed=3)
    hits = {1: 0, 2: 0}
    for epoch in range(200):
        data.set_epoch(epoch)
        label = data[0]["label"]
        for value in hits:
            hits[value] += int((label == value).any())
    # Each label is drawn as often as the other; patches that lie anywhere hit rarely.
    for count in hits.values():
        assert abs(count / 200 - share / 2) < 0.12


def test_items_depend_on_seed_epoch_and_index(prepared: Prepare) -> None:
    folder = prepared(mode="patch", size=(4, 4, 4))
    data = PreparedDataset(folder, augmentation=STRONG, seed=1)
    same, other = (PreparedDataset(folder, augmentation=STRONG, seed=s) for s in (1, 2))
    same[2]  # what was made before does not matter
    assert torch.equal(data[0]["image"], same[0]["image"])
    assert not torch.equal(data[0]["image"], other[0]["image"])
    first = data[0]["image"]
    data.set_epoch(1)
    assert not torch.equal(data[0]["image"], first)
    data.set_epoch(0)
    assert torch.equal(data[0]["image"], first)


def epochs(data: PreparedDataset, workers: int) -> list[dict[str, Any]]:
    loader = make_loader(data, batch_size=2, workers=workers)
    batches = []
    for epoch in range(2):
        set_epoch(loader, epoch)
        batches += list(loader)
    return batches


def test_workers_do_not_change_items(prepared: Prepare) -> None:
    data = PreparedDataset(prepared(5, mode="patch", size=(4, 4, 4)), augmentation=STRONG, seed=7)
    alone, helped = epochs(data, 0), epochs(data, 2)
    assert len(alone) == len(helped) == 4  # the last, short batch is dropped
    for expected, actual in zip(alone, helped, strict=True):
        assert all(torch.equal(expected[key], actual[key]) for key in expected)
    orders = [torch.cat([b["index"] for b in alone[k : k + 2]]).tolist() for k in (0, 2)]
    assert orders[0] != orders[1]
    assert not any(torch.equal(alone[0]["image"], batch["image"]) for batch in alone[1:])


def test_cases_are_divided_among_processes(prepared: Prepare) -> None:
    data = PreparedDataset(prepared(4))
    seen: list[int] = []
    for rank in (0, 1):
        loader = make_loader(data, batch_size=1, rank=rank, world=2)
        set_epoch(loader, 3)
        seen += [int(batch["index"]) for batch in loader]
    assert sorted(seen) == [0, 1, 2, 3]


def test_ordered_loading_drops_nothing(prepared: Prepare) -> None:
    loader = make_loader(PreparedDataset(prepared(3)), batch_size=2, shuffle=False)
    assert [batch["index"].tolist() for batch in loader] == [[0, 1], [2]]
    loader = make_loader(PreparedDataset(prepared(3)), batch_size=4)
    assert [len(batch["index"]) for batch in loader] == [3]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_names_its_case(prepared: Prepare, workers: int) -> None:
    data = PreparedDataset(prepared())
    data.prepared.cache.path(data.prepared[1].image).unlink()
    loader = make_loader(data, batch_size=1, shuffle=False, workers=workers)
    batches = iter(loader)
    with pytest.raises(MedarError, match=r"^case c1 of .*does not exist") as refusal:
        list(batches)
    assert "\n" not in str(refusal.value)
    # The other cases still come: one bad entry does not stop the workers.
    assert int(next(batches)["index"]) == 2
    if workers:
        batches._shutdown_workers()  # left to the garbage collector, torch waits five seconds


def test_epochs_leave_no_worker_behind(prepared: Prepare) -> None:
    data = PreparedDataset(prepared(mode="patch", size=(4, 4, 4)))

    def epoch(number: int) -> None:
        data.set_epoch(number)
        for index in range(len(data)):
            data[index]

    epoch(0)
    tracemalloc.start()
    try:
        epoch(1)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(2, 22):
            epoch(number)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 20_000


def test_pickles(prepared: Prepare) -> None:
    data = PreparedDataset(prepared(mode="patch", size=(4, 4, 4)), augmentation=STRONG)
    data.set_epoch(4)
    other = pickle.loads(pickle.dumps(data))
    assert torch.equal(other[1]["image"], data[1]["image"])


def test_impossible_values_are_refused(prepared: Prepare, plan: MakePlan) -> None:
    folder = prepared(1)
    with pytest.raises(MedarError, match=r"foreground must be from 0 to 1, got 1\.5"):
        PreparedDataset(folder, foreground=1.5)
    with pytest.raises(MedarError, match="seed must be at least 0, got -1"):
        PreparedDataset(folder, seed=-1)
    plan(size=(4, 4, 4)).save(folder / "plan.yaml")
    with pytest.raises(MedarError, match="has changed"):
        PreparedDataset(folder)
