"""Settings of the segmentation recipe from the data and the machine, as in
`medar.recipes.automatic`."""

from collections.abc import Iterator
from math import prod

from medar.data.plan import Plan
from medar.recipes.automatic import (
    MINUTES,
    REACHED,
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
)
from medar.recipes.settings import SegmentationRecipeSettings
from medar.settings import from_dict, to_dict
from medar.words import format_count


def choose_segmentation(
    data: Data, machine: Machine, minutes: float | None = None
) -> tuple[SegmentationRecipeSettings, list[str]]:
    """Settings of the segmentation recipe: a network trained from scratch.

    Arguments and result are those of `choose_synthesis`.
    """
    minutes = minutes or MINUTES[machine.device]
    chosen, plan, steps = first_fitting(
        _segmentation_candidates(data, machine, minutes),
        lambda one: _segmenter_fits(one[0], one[1], machine),
    )
    part = chosen.segmentation
    labelled = sum(case.label is not None and case.split == "train" for case in data.manifest)
    kind = "patches" if plan.mode == "patch" else "volumes"
    lines = [
        basis(data, machine),
        f"{kind}: {describe(plan)}, {medians(data)}",
        f"network: {part.backbone.kind} of width {part.backbone.width}, from scratch (in "
        "docs/pretraining.md pretraining gained nothing)",
        f"training: {format_count(labelled, 'labelled volume')}, batches of "
        f"{part.data.batch_size}, about {steps['segmentation']:,} steps",
        f"time: {minutes:g} minutes in all (--minutes); "
        f"{format_count(data.count('test'), 'test volume')}",
    ]
    return chosen, lines


def _segmentation_candidates(
    data: Data, machine: Machine, minutes: float
) -> Iterator[tuple[SegmentationRecipeSettings, Plan, dict[str, int]]]:
    """As `_synthesis_candidates`; patches only where predicting from them takes little time."""
    for size in sizes_for(data):
        plan = plan_for(data, size.voxels, {})
        settings = _segmentation(data, size, plan, machine, minutes, STEPS)
        forward = _segmenter_flops(settings, plan)
        if plan.mode == "patch" and _prediction(data, plan, forward, machine) > minutes / 10:
            plan = plan_for(data, size.voxels, {"mode": "volume"})
            settings = _segmentation(data, size, plan, machine, minutes, STEPS)
            forward = _segmenter_flops(settings, plan)
        weights = settings.budget_weights
        total = sum(to_dict(weights).values()) - weights.tokenizer - weights.pretrain
        flops = 3 * forward * settings.segmentation.data.batch_size
        steps = steps_within(flops, machine, "segmentation", minutes * weights.train / total)
        chosen = _segmentation(data, size, plan, machine, minutes, steps)
        yield chosen, plan, {"segmentation": steps}


def _segmentation(
    data: Data, size: Size, plan: Plan, machine: Machine, minutes: float, steps: int
) -> SegmentationRecipeSettings:
    width = 32 if machine.device == "cuda" else 16
    values = {
        "data": to_dict(data.settings),
        "plan": fixed_values(plan),
        "segmentation": {
            "backbone": {"kind": "dynunet", "width": min(width, size.width)},
            "data": {"batch_size": max(1, min(2, data.count("train")))},
            "training": schedule(steps, 0.01, minutes),
        },
        "max_minutes": minutes,
    }
    return from_dict(SegmentationRecipeSettings, values, "chosen settings")


def _segmenter_flops(settings: SegmentationRecipeSettings, plan: Plan) -> int:
    """Operations of a forward pass on one volume or patch."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from medar.segmentation.segmenter import Segmenter

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = Segmenter(settings.segmentation.backbone, plan)
        model(torch.empty(1, len(plan.channels) or 1, *plan.size))
    return int(counter.get_total_flops())


def _prediction(data: Data, plan: Plan, forward: int, machine: Machine) -> float:
    """Minutes to predict the test cases twice, from patches that overlap by half."""
    voxels = float(prod(data.fingerprint.extents.mean(axis=0) / plan.spacing))
    patches = 8 * max(1.0, voxels / prod(plan.size))
    seconds = forward * patches / (machine.speed * REACHED["segmentation"])
    return 2 * data.count("test") * seconds / 60


def _segmenter_fits(settings: SegmentationRecipeSettings, plan: Plan, machine: Machine) -> bool:
    from medar.recipes.cost import segmentation_cost

    batch = 1 if machine.device == "cuda" else settings.segmentation.data.batch_size
    cost = segmentation_cost(settings.segmentation, plan, machine.device)
    return cost.bytes(batch) <= ROOM * machine.memory
