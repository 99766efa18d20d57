"""Batches by the memory of a card."""

from pathlib import Path
from typing import Any

import pytest

from medar.cli.recipe import Options
from medar.errors import MedarError
from medar.recipes.configs import configs_folder
from medar.recipes.settings import SegmentationRecipeSettings, SynthesisSettings, load_recipe
from medar.recipes.sizing import GB, OWN, USABLE, _costs, _plan, sized

PRESETS = ("mr_96", "ct_128", "mr_160", "ct_256")
PARTS = ("tokenizer", "detail", "generator")


def preset(name: str, *overrides: str) -> SynthesisSettings:
    return load_recipe(SynthesisSettings, configs_folder() / f"{name}.yaml", overrides)


def volumes(part: Any) -> int:
    """Per optimiser step."""
    return int(part.data.batch_size * part.training.accumulation_steps)


@pytest.mark.parametrize("memory", [24, 40, 80, 140])
@pytest.mark.parametrize("name", PRESETS)
def test_presets_fit_cards_at_the_same_volumes_per_step(name: str, memory: int) -> None:
    before = preset(name)
    after, notes = sized(before, memory * GB)
    assert [note.split(":")[0] for note in notes] == list(PARTS)
    assert not any("more than" in note for note in notes)
    plan = _plan(after)
    assert plan is not None
    for part, cost in _costs(after, plan).items():
        mine, theirs = getattr(after, part), getattr(before, part)
        assert volumes(mine) == volumes(theirs)
        found = cost(mine)
        assert found.bytes(mine.data.batch_size) <= USABLE * (memory * GB - OWN)
        assert mine.training.accumulation_steps == 1 or found.bytes(
            2 * mine.data.batch_size
        ) > USABLE * (memory * GB - OWN)


def test_checkpointing_is_turned_on_where_not_one_volume_fits() -> None:
    settings = preset("ct_128", "generator.model.mixer.kind=none")
    small, notes = sized(settings, 14 * GB)
    assert small.generator.model.activation_checkpointing
    assert volumes(small.generator) == 8
    assert notes[-1].endswith("with activation checkpointing")
    assert not sized(settings, 24 * GB)[0].generator.model.activation_checkpointing
    assert sized(settings, 3 * GB)[1][-1].endswith("more than the card may hold")


def test_generators_learn_from_crops_where_checkpointing_is_not_enough() -> None:
    small, notes = sized(preset("ct_256"), 16 * GB)
    assert small.generator.model.crop_side == 24
    assert notes[-1].endswith("with activation checkpointing, on crops of 24 latent sites per side")
    smaller, _ = sized(preset("ct_256"), 12 * GB)
    assert smaller.generator.model.crop_side == 16
    assert sized(preset("ct_256"), 24 * GB)[0].generator.model.crop_side is None
    _, notes = sized(preset("ct_256", "generator.model.mixer.kind=mamba"), 16 * GB)
    assert notes[-1].endswith("more than the card may hold")


def test_processes_share_a_batch() -> None:
    two, _ = sized(preset("ct_128"), 24 * GB, processes=2)
    assert (two.generator.data.batch_size, two.generator.training.accumulation_steps) == (2, 4)
    assert volumes(two.generator) == volumes(preset("ct_128").generator)


def test_a_mixer_of_another_package_is_left_as_it_is() -> None:
    _, notes = sized(preset("mr_96", "generator.model.mixer.kind=mamba"), 24 * GB)
    assert len(notes) == 3


def test_plans_that_are_derived_from_data_change_nothing() -> None:
    settings = load_recipe(
        SegmentationRecipeSettings, configs_folder() / "segment_hippocampus_mr.yaml"
    )
    same, _ = sized(settings, 24 * GB)
    assert volumes(same.segmentation) == volumes(settings.segmentation)
    demo = load_recipe(SynthesisSettings, configs_folder() / "demo.yaml")
    if "size" not in demo.plan_values():
        assert sized(demo, 24 * GB) == (
            demo, ["no size in the plan: batches are those of the settings"],
        )  # fmt: skip


def test_too_small_a_card_is_refused() -> None:
    with pytest.raises(MedarError, match=r"memory must be above 1 GB, got 0\.5"):
        sized(preset("mr_96"), GB / 2)


def test_the_command_asks_the_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = preset("ct_128")
    monkeypatch.setattr("medar.devices.card_memory", lambda: 80 * GB)
    assert Options().apply(settings, None).generator.data.batch_size == 4
    assert Options(memory=24).apply(settings, None).generator.data.batch_size == 1
    on_cpu = preset("ct_128", "generator.training.device=cpu", "generator.data.batch_size=3")
    assert Options().apply(on_cpu, None).generator.data.batch_size == 3
    monkeypatch.setattr("medar.devices.card_memory", lambda: None)
    assert Options().apply(settings, None).generator == settings.generator
