"""Settings of the synthesis recipe from the data and the machine; see `medar.recipes.automatic`."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from medar.data.plan import Plan
from medar.data.planning import COVERED
from medar.evaluation.extractors.handcrafted import SMALLEST
from medar.recipes.automatic import (
    MINUTES,
    ROOM,
    STEPS,
    Data,
    Machine,
    Size,
    basis,
    describe,
    first_fitting,
    fixed_values,
    medians,
    plan_for,
    schedule,
    sizes_for,
    steps_within,
    times,
)
from medar.recipes.settings import SynthesisSettings
from medar.settings import from_dict, to_dict
from medar.words import format_count

DETAIL_MINUTES = 4.0
"""With less time in all there is no detail decoder: tokenizer and generator need it more."""

SHORT_MINUTES = 20.0
"""With less time in all the detail decoder is narrow; see docs/explanation/tokens.md."""
THIN = 4
"""Downsampling along an axis that is resampled to `SMALLEST` voxels."""
MANY = 200
"""From this number of training volumes on they are varied less."""


def choose_synthesis(
    data: Data, machine: Machine, minutes: float | None = None
) -> tuple[SynthesisSettings, list[str]]:
    """Settings of the synthesis recipe.

    Args:
        data: from `measure`.
        machine: to train on.
        minutes: for all stages together; default: by the device.

    Returns:
        The settings, and what was chosen, for people.
    """
    minutes = minutes or MINUTES[machine.device]
    chosen, plan, steps = first_fitting(
        _synthesis_candidates(data, machine, minutes), lambda one: _fits(one[0], one[1], machine)
    )
    tokenizer, generator = chosen.tokenizer, chosen.generator
    config = tokenizer.model.config(plan)
    detail = (
        f"detail decoder of widths {times(chosen.detail.model.widths)}"
        if chosen.detail
        else f"no detail decoder in less than {DETAIL_MINUTES:g} minutes"
    )
    lines = [
        basis(data, machine),
        f"volumes: {describe(plan)}, {medians(data)}; downsampled {times(plan.downsampling)} to "
        f"{config.schedule.length} tokens",
        f"tokenizer: width {tokenizer.model.width}, {config.codebook.size} codes, batches of "
        f"{tokenizer.data.batch_size}, about {steps['tokenizer']:,} steps; {detail}",
        f"generator: {generator.model.depth} blocks of {generator.model.width} features, batches "
        f"of {generator.data.batch_size}, about {steps['generator']:,} steps",
        f"time: {minutes:g} minutes in all (--minutes); {chosen.samples.n} samples are compared "
        f"with {format_count(data.count('val', 'test'), 'held-out volume')}",
    ]
    return chosen, lines


def _synthesis_candidates(
    data: Data, machine: Machine, minutes: float
) -> Iterator[tuple[SynthesisSettings, Plan, dict[str, int]]]:
    """Settings of each size, the largest first, with plan and steps of trainings."""
    for size in sizes_for(data):
        plan = _whole_volumes(data, size.voxels)
        settings = _synthesis(data, size, plan, machine, minutes, {})
        steps = _synthesis_steps(settings, plan, machine, minutes)
        # Again, as schedules depend on the number of steps.
        yield _synthesis(data, size, plan, machine, minutes, steps), plan, steps


def _whole_volumes(data: Data, voxels: int) -> Plan:
    """The plan of whole volumes; thin ones are resampled to the sides that the evaluation needs."""
    plan = plan_for(data, voxels, {"mode": "volume"})
    if min(plan.size) >= SMALLEST:
        return plan
    extent = np.percentile(data.fingerprint.extents, COVERED, axis=0).tolist()
    axes = list(zip(plan.size, plan.spacing, plan.downsampling, extent, strict=True))
    spacing = [s if n >= SMALLEST else float(f"{e / SMALLEST:.3g}") for n, s, _, e in axes]
    factors = [f if n >= SMALLEST else THIN for n, _, f, _ in axes]
    size = [n if n >= SMALLEST else SMALLEST for n, _, _, _ in axes]
    given = {"mode": "volume", "spacing": spacing, "size": size, "downsampling": factors}
    return plan_for(data, voxels, given)


def _synthesis(
    data: Data, size: Size, plan: Plan, machine: Machine, minutes: float, steps: dict[str, int]
) -> SynthesisSettings:
    batch = max(1, min(8 if machine.device == "cuda" else 4, data.count("train")))
    variants = 4 if data.count("train") < MANY else 1
    varied = {"contrast": 0.1, "brightness": 0.05, "gamma": 0.1, "noise": 0.0}
    values: dict[str, Any] = {
        "data": to_dict(data.settings),
        "plan": fixed_values(plan),
        "tokenizer": {
            "model": {
                "width": size.width,
                "blocks_per_level": size.blocks,
                "codebook": {"kind": "ema", "size": size.codes, "width": 32},
                "quantiser": {"start_fraction": 0.3},
            },
            "data": {"batch_size": batch, "augmentation": varied},
            "training": schedule(steps.get("tokenizer", STEPS), 2e-3, minutes, "muon"),
        },
        "generator": {
            "model": {
                "depth": size.depth, "head_width": size.head_width,
                "convolutions": size.convolutions, "dropout": size.dropout,
            },
            "tokens": {
                "variants": variants,
                # Whole voxels: nothing is interpolated, so that texture stays as it is.
                "augmentation": {
                    "shift": 2, "affine_probability": 0.0, "intensity_probability": 0.0,
                },
            },
            "data": {"batch_size": batch},
            "training": schedule(steps.get("generator", STEPS), 4e-3, minutes, "muon"),
        },
        "samples": {"n": min(100, max(20, data.count("val", "test")))},
        "max_minutes": minutes,
    }  # fmt: skip
    if size.depth >= 12:  # rates of the presets
        values["tokenizer"]["training"]["learning_rate"] = 5e-4
        values["generator"]["training"]["learning_rate"] = 3e-4
    if minutes >= DETAIL_MINUTES:
        values["detail"] = {
            "data": {"batch_size": batch},
            "training": schedule(STEPS, 4e-3, minutes, "muon"),
        }
        if minutes < SHORT_MINUTES:
            values["detail"]["model"] = {
                "widths": [16, 32, 48], "correlation": "auto", "prediction": "residual",
            }  # fmt: skip
    return from_dict(SynthesisSettings, values, "chosen settings")


def _synthesis_steps(
    settings: SynthesisSettings, plan: Plan, machine: Machine, minutes: float
) -> dict[str, int]:
    """Steps of tokenizer and generator within their parts of the time."""
    from medar.recipes.cost import codes
    from medar.tokenizer.network import cost

    config, model = settings.tokenizer.model.config(plan), settings.generator.model
    weights = to_dict(settings.budget_weights)
    if settings.detail is None:
        weights.pop("detail")
    per_token = 12 * model.depth * model.width**2 + model.width * codes(config.codebook)
    per_token += 54 * model.convolutions * model.width**2
    flops = {
        "tokenizer": 3 * cost(config.network, plan.size).flops * settings.tokenizer.data.batch_size,
        "generator": 6 * per_token * config.schedule.length * settings.generator.data.batch_size,
    }
    return {
        name: steps_within(
            flops[name], machine, name, minutes * weights[name] / sum(weights.values())
        )
        for name in flops
    }


def _fits(settings: SynthesisSettings, plan: Plan, machine: Machine) -> bool:
    """Whether a step fits into the memory: of one volume on a GPU, whose batches are divided."""
    from medar.recipes.cost import generator_cost, tokenizer_cost

    config = settings.tokenizer.model.config(plan)
    costs = (
        (tokenizer_cost(settings.tokenizer, plan, machine.device), settings.tokenizer.data),
        (
            generator_cost(settings.generator, config.schedule, config.codebook, machine.device),
            settings.generator.data,
        ),
    )
    return all(
        one.bytes(1 if machine.device == "cuda" else data.batch_size) <= ROOM * machine.memory
        for one, data in costs
    )
