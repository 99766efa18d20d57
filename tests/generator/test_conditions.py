"""Attribute embeddings; an unknown attribute has an embedding of its own."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from medar.errors import MedarError
from medar.generator.conditions import AttributeEmbedding, Condition, drop
from medar.generator.settings import Attribute, ConditionConfig
from medar.settings import from_dict

AGE = Attribute(name="age", mean=50.0, deviation=10.0)
MODALITY = Attribute(name="modality", values=("CT", "MR"))
SIZE = Attribute(name="size")
SIDE = Attribute(name="side", values=("left", "middle", "right"))
SCHEMA = (AGE, MODALITY, SIZE, SIDE)
NAN = math.nan


def embed(*rows: list[float], schema: tuple[Attribute, ...] = SCHEMA) -> Tensor:
    torch.manual_seed(0)
    model = AttributeEmbedding(schema, 16)
    embedded: Tensor = model(torch.tensor(rows))
    return embedded


def test_every_attribute_and_its_absence_matter() -> None:
    rows = [
        [50.0, 0.0, 1.0, 2.0],
        [60.0, 0.0, 1.0, 2.0],
        [50.0, 1.0, 1.0, 2.0],
        [50.0, 0.0, -1.0, 2.0],
        [50.0, 0.0, 1.0, 1.0],
        [NAN, 0.0, 1.0, 2.0],
        [50.0, NAN, 1.0, 2.0],
        [50.0, 0.0, NAN, 2.0],
        [50.0, 0.0, 1.0, NAN],
        [NAN, NAN, NAN, NAN],
    ]
    embedded = embed(*rows)
    assert embedded.shape == (10, 16)
    apart = torch.cdist(embedded, embedded) + 9 * torch.eye(10)
    assert apart.min() > 0.1


def test_attributes_add_up() -> None:
    a, b = [40.0, 1.0, 2.0, 0.0], [70.0, 0.0, 0.0, 1.0]
    mixed = embed(a, b, [40.0, 1.0, 0.0, 1.0], [70.0, 0.0, 2.0, 0.0])
    torch.testing.assert_close(mixed[0] + mixed[1], mixed[2] + mixed[3])


def test_batch_items_are_independent() -> None:
    rows = [[40.0, 1.0, 2.0, 0.0], [NAN, 0.0, NAN, 1.0]]
    assert torch.equal(embed(*rows)[1:], embed(rows[1]))


def test_embeddings_are_smooth_and_clamped_outside_the_range() -> None:
    ages = embed(*([age, 0.0, 0.0, 0.0] for age in (50.0, 50.5, 60.0, 90.0, 900.0)))
    assert torch.dist(ages[0], ages[1]) < 0.3 * torch.dist(ages[0], ages[2])
    assert torch.equal(ages[3], ages[4])


def test_without_attributes_one_learned_vector_is_used() -> None:
    torch.manual_seed(0)
    model = AttributeEmbedding((), 16)
    embedded = model(torch.empty(3, 0))
    assert embedded.shape == (3, 16)
    assert torch.equal(embedded[0], embedded[2])
    embedded.sum().backward()
    assert all(p.grad is not None and bool((p.grad == 3).all()) for p in model.parameters())


@pytest.mark.parametrize("schema", [(AGE, SIZE), (MODALITY, SIDE)])
def test_only_numbers_or_only_categories(schema: tuple[Attribute, ...]) -> None:
    embedded = embed([1.0, 1.0], [1.0, 0.0], [NAN, NAN], schema=schema)
    assert torch.unique(embedded, dim=0).shape == (3, 16)


def test_unknown_values_give_finite_gradients() -> None:
    model = AttributeEmbedding(SCHEMA, 16)
    model(torch.tensor([[NAN, NAN, 3.0, 1.0], [50.0, 0.0, NAN, NAN]])).square().sum().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert bool(parameter.grad.isfinite().all())
        assert bool((parameter.grad != 0).any())


def test_another_number_of_attributes_is_refused() -> None:
    with pytest.raises(MedarError, match=r"shape \[1, 3\] must be \(batch, 4\)"):
        embed([1.0, 1.0, 1.0])


def condition(batch: int) -> Condition:
    return Condition(
        attributes=torch.arange(4.0).repeat(batch, 1), map=torch.ones(batch, 2, 1, 1, 1)
    )


def test_conditions_are_dropped_item_by_item() -> None:
    given = condition(4000)
    dropped = drop(given, 0.2, torch.Generator().manual_seed(0), maps=0.1)
    again = drop(given, 0.2, torch.Generator().manual_seed(0), maps=0.1)
    gone = dropped.attributes.isnan()
    assert torch.equal(gone, again.attributes.isnan())
    kept = dropped.attributes[~gone]
    assert torch.equal(kept, given.attributes[~gone])
    # All at once with 0.2, each by itself with 0.2 of what is left.
    assert gone.all(dim=1).float().mean() == pytest.approx(0.2, abs=0.03)
    assert gone.float().mean() == pytest.approx(0.36, abs=0.03)
    assert dropped.map is not None
    lost = (dropped.map == 0).flatten(1)
    assert torch.equal(lost.all(dim=1), lost.any(dim=1))
    assert lost.float().mean() == pytest.approx(0.2 + 0.8 * 0.1, abs=0.03)
    unconditional = gone.all(dim=1) & lost.all(dim=1)
    assert unconditional.float().mean() == pytest.approx(0.2, abs=0.03)


def test_nothing_or_all_is_dropped() -> None:
    given = condition(5)
    same = drop(given, 0.0, torch.Generator())
    assert torch.equal(same.attributes, given.attributes)
    assert same.map is not None
    assert torch.equal(same.map, torch.ones_like(same.map))
    none = drop(given, 1.0, torch.Generator(), maps=1.0)
    nothing = given.nothing()
    assert nothing.map is not None
    assert none.map is not None
    assert bool(none.attributes.isnan().all() & nothing.attributes.isnan().all())
    assert torch.equal(none.map, nothing.map)
    assert not none.map.any()
    assert torch.equal(given.without_attributes().map, given.map)  # type: ignore[arg-type]


def test_single_attributes_are_dropped_with_their_probability() -> None:
    given = Condition(attributes=torch.zeros(4000, 1))
    gone = drop(given, 0.2, torch.Generator().manual_seed(0)).attributes.isnan()
    assert gone.float().mean() == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (Attribute, {"name": "age", "deviation": 0.0}, "deviation must be greater than 0"),
        (Attribute, {"name": "age", "deviation": math.nan}, "deviation must be finite"),
        (Attribute, {"name": "age", "mean": math.nan}, "mean must be finite"),
        (Attribute, {"name": "sex", "values": ["f", "f"]}, "'sex': duplicate value"),
        (ConditionConfig, {"map": "image", "map_channels": 1}, "map"),
        (ConditionConfig, {"map": "label"}, "'label' with 0 channels"),
        (ConditionConfig, {"map_width": 0}, "map_width must be at least 1, got 0"),
    ],
)
def test_invalid_configurations_are_refused(
    kind: type, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(MedarError, match=message) as refused:
        from_dict(kind, values, "config.json")
    assert "\n" not in str(refused.value)
