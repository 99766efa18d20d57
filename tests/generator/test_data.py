"""Training items: matching tokens, attributes and maps."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from medar.data.cache import ArrayCache
from medar.data.loading import make_loader, set_epoch
from medar.errors import MedarError
from medar.generator.data import GeneratorDataset, condition_of
from medar.generator.settings import Attribute, ConditionConfig
from medar.tokenizer.pyramid import TokenPyramid
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.tokens import MAPS, TokenCase, TokenDataset, TokenIndex

SCHEDULE = ScaleSchedule(grids=((1, 1, 1), (2, 2, 2), (3, 2, 3)))
SIZE = (6, 4, 6)
LABELS = {4: "a", 2: "b"}
ATTRIBUTES = (Attribute(name="age"), Attribute(name="side", values=("left", "right")))
AGES: tuple[dict[str, Any], ...] = (
    {"age": 30, "side": "right"}, {"age": 40}, {"side": "left"}, {"age": 60, "side": "unseen"}
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tokens of four cases with two augmented variants; token 0 and voxel 0 encode the variant."""
    cases = tuple(
        TokenCase(
            id=f"c{k}",
            subject=f"c{k}",
            split="train",
            modality="MR",
            attributes=attributes,
            annotated=(4, 2),
            image="",
            label="",
            trace={},
        )
        for k, attributes in enumerate(AGES)
    )
    index = TokenIndex(
        tokenizer="t",
        schedule=SCHEDULE,
        codebook_size=11,
        plan="p",
        seed=0,
        variants=2,
        augmentation=None,
        maps=LABELS,
        cases=cases,
    )
    torch.manual_seed(0)
    for k, case in enumerate(cases):
        flat = torch.randint(0, 11, (3, SCHEDULE.length))
        flat[:, 0] = torch.arange(3)
        TokenPyramid.from_flat(flat, SCHEDULE, 11, "t").save(tmp_path / case.file)
        labels = np.random.default_rng(k).choice([-1, 0, 2, 4], (3, *SIZE)).astype(np.int8)
        labels[:, 0, 0, 0] = (0, 2, 4)
        ArrayCache(tmp_path / MAPS).put(case.id, labels, {}, whole=True)
    index.save(tmp_path)
    return tmp_path


def test_items_contain_matching_parts(folder: Path) -> None:
    tokens = TokenDataset(folder, maps=True)
    data = GeneratorDataset(tokens, ATTRIBUTES)
    assert (len(data), data.map_channels) == (4, 3)
    seen = set()
    for epoch in range(9):
        data.set_epoch(epoch)
        for k in range(4):
            item, plain = data[k], tokens[k]
            assert set(item) == {"tokens", "attributes", "augmented", "map"}
            assert torch.equal(item["tokens"], plain["indices"])
            variant = int(item["tokens"][0])
            assert bool(item["augmented"]) == (variant > 0)
            # The values 0, 2 and 4 are the classes 0, 2 and 1 of the model.
            assert int(item["map"][0, 0, 0]) == (0, 2, 1)[variant]
            for value, index in ((0, 0), (2, 2), (4, 1), (-1, -1)):
                assert torch.equal(item["map"] == index, plain["map"] == value)
            seen.add(variant)
    assert seen == {0, 1, 2}
    attributes = torch.stack([data[k]["attributes"] for k in range(4)])
    assert torch.nan_to_num(attributes, -1).tolist() == [[30, 1], [40, -1], [-1, 0], [60, -1]]


def test_a_batch_becomes_a_condition(folder: Path) -> None:
    data = GeneratorDataset(TokenDataset(folder, maps=True, variant=0), ATTRIBUTES)
    batch = default_collate([data[0], data[3]])
    config = ConditionConfig(map="label", map_channels=data.map_channels)
    condition = condition_of(batch, config)
    assert condition.attributes.shape == (2, 2)
    assert condition.augmented is not None
    assert condition.augmented.tolist() == [False, False]
    assert condition.map is not None
    assert condition.map.shape == (2, 3, *SIZE)
    assert torch.equal(condition.map.sum(dim=1) == 0, batch["map"] == -1)
    bare = GeneratorDataset(TokenDataset(folder, variant=0))
    item = default_collate([bare[0]])
    assert (bare.map_channels, set(item)) == (0, {"tokens", "attributes", "augmented"})
    assert condition_of(item, ConditionConfig()).attributes.shape == (1, 0)
    assert condition_of(item, ConditionConfig()).map is None


def test_loaders_draw_variants_per_epoch(folder: Path) -> None:
    data = GeneratorDataset(TokenDataset(folder, maps=True, seed=1), ATTRIBUTES)
    copy = pickle.loads(pickle.dumps(data))
    loader, other = (make_loader(dataset, batch_size=4, shuffle=False) for dataset in (data, copy))
    seen = []
    for epoch in range(3):
        set_epoch(loader, epoch)
        set_epoch(other, epoch)
        (batch,), (again,) = list(loader), list(other)
        assert torch.equal(batch["tokens"], again["tokens"])
        assert torch.equal(batch["map"], again["map"])
        seen.append(batch["tokens"])
    assert not torch.equal(seen[0], seen[1]) or not torch.equal(seen[1], seen[2])


def test_missing_maps_are_refused(folder: Path) -> None:
    tokens = TokenDataset(folder, maps=True)
    path = folder / MAPS / "c2.b2nd"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(MedarError, match=r"c2.b2nd: this map is missing or damaged; encode"):
        tokens[2]
    path.unlink()
    with pytest.raises(MedarError, match=r"c2.b2nd: this map is missing or damaged; encode"):
        tokens[2]
