"""Batches that fit a card: the settings of a recipe's trainings by the memory of a GPU.

The number of volumes of an optimiser step stays what the settings say: it is divided into as many
batches as the card needs (`training.accumulation_steps`). Where not even one volume fits,
activation checkpointing is turned on; where that is not enough, a generator without mixer is
trained on the largest crops that fit. The costs are those of `medar.recipes.cost`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from medar.errors import MedarError

if TYPE_CHECKING:
    from medar.data.plan import Plan
    from medar.recipes.cost import StepCost
    from medar.recipes.settings import SegmentationRecipeSettings, SynthesisSettings

    Recipe = TypeVar("Recipe", SynthesisSettings, SegmentationRecipeSettings)

GB = 10**9
OWN = 1 * GB
"""What CUDA and its libraries take for themselves."""
MAX_CROP = 128
"""Latent sites along a side of the largest crops."""
USABLE = 0.9
"""Fraction of the rest that may be used; fragments and estimates that are too low need some."""


def sized(settings: "Recipe", memory: float, processes: int = 1) -> "tuple[Recipe, list[str]]":
    """A recipe's settings for a card.

    Without a size of volumes in the settings the plan is derived from the data later, and nothing
    is changed.

    Args:
        settings: of the recipe.
        memory: of the card, in bytes.
        processes: of each training, which share a batch.

    Returns:
        The settings, and one line per training.

    Raises:
        MedarError: a card with less memory than libraries take.
    """
    if memory <= OWN:
        raise MedarError(f"memory must be above {OWN / GB:g} GB, got {memory / GB:g}")
    plan = _plan(settings)
    if plan is None:
        return settings, ["no size in the plan: batches are those of the settings"]
    changes: dict[str, Any] = {}
    notes = []
    for name, cost in _costs(settings, plan).items():
        part, note = _fitted(getattr(settings, name), cost, USABLE * (memory - OWN), processes)
        changes[name] = part
        notes.append(f"{name}: {note}")
    return replace(settings, **changes), notes


def trains_on_cpu(settings: Any) -> bool:
    """Whether the settings name the CPU for the recipe's last training."""
    last = getattr(settings, "generator", None) or settings.segmentation
    return bool(last.training.device == "cpu")


def _fitted(
    part: Any, cost: "Callable[[Any], StepCost]", room: float, processes: int
) -> tuple[Any, str]:
    """The settings of a training whose step fits, and a line about them."""
    total = part.data.batch_size * part.training.accumulation_steps
    found = cost(part)
    model: Any = getattr(part, "model", None)
    if found.largest_batch(room) == 0 and hasattr(model, "activation_checkpointing"):
        part = replace(part, model=replace(model, activation_checkpointing=True))
        found = cost(part)
    if found.largest_batch(room) == 0 and hasattr(model, "crop_side"):
        part = _cropped(part, cost, room)
        found = cost(part)
    own = total // processes
    fits = [n for n in range(1, own + 1) if own % n == 0 and n <= found.largest_batch(room)]
    batch = max(fits, default=1)
    part = replace(
        part,
        data=replace(part.data, batch_size=batch * processes),
        training=replace(part.training, accumulation_steps=max(1, own // batch)),
    )
    note = (
        f"batches of {batch * processes}, {part.training.accumulation_steps} per step, about "
        f"{found.bytes(batch) / GB:.1f} GB"
    )
    if getattr(getattr(part, "model", None), "activation_checkpointing", False):
        note += ", with activation checkpointing"
    if side := getattr(getattr(part, "model", None), "crop_side", None):
        note += f", on crops of {side} latent sites per side"
    return part, note if fits else f"{note}, more than the card may hold"


def _cropped(part: Any, cost: "Callable[[Any], StepCost]", room: float) -> Any:
    """A generator's settings with the largest crops of which one fits, or the smallest crops."""
    model = part.model
    if model.mixer.kind != "none":
        return part
    sides = range(model.window_size, MAX_CROP + 1, model.window_size)
    for side in sorted((n for n in sides if n >= model.window_min_side), reverse=True):
        part = replace(part, model=replace(model, crop_side=side))
        if cost(part).largest_batch(room):
            break
    return part


def _costs(settings: Any, plan: "Plan") -> "dict[str, Callable[[Any], StepCost]]":
    """By training, the cost of its settings."""
    from medar.recipes import cost

    costs: dict[str, Callable[[Any], StepCost]] = {}
    tokenizer = settings.tokenizer
    if tokenizer is not None:
        config = tokenizer.model.config(plan)
        costs["tokenizer"] = lambda part: cost.tokenizer_cost(part, plan)
        if getattr(settings, "detail", None) is not None:
            costs["detail"] = lambda part: cost.detail_cost(part, config.network, plan)
        generator = getattr(settings, "generator", None)
        if generator is not None and generator.model.mixer.kind in cost.MIXERS:
            costs["generator"] = lambda part: cost.generator_cost(
                part, config.schedule, config.codebook
            )
    for name in ("pretrain", "segmentation"):
        if getattr(settings, name, None) is not None:
            costs[name] = lambda part: cost.segmentation_cost(part, plan)
    return costs


def _plan(settings: Any) -> "Plan | None":
    """The plan of the settings, with one channel and label where the data have them."""
    from medar.data.plan import Plan
    from medar.data.planning import check_values
    from medar.settings import from_dict, to_dict

    values = settings.plan_values()
    if "size" not in values:
        return None
    plan = to_dict(check_values(values, None))
    labels, channels = plan["labels"] or {1: "label"}, plan["channels"] or ()
    return from_dict(Plan, {**plan, "labels": labels, "channels": channels}, "plan")
