"""`Job`: a request as the model takes it - a scene, a condition, settings - and its record."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from medar.devices import device_of
from medar.generator.attributes import MODALITY, attribute_values
from medar.generator.conditions import Condition
from medar.generator.generator import Generator
from medar.generator.settings import SamplingSettings
from medar.settings import to_dict
from medar.synthesis.inpainting import inpainting
from medar.synthesis.request import Request
from medar.synthesis.scene import Scene, identity, map_of, mask_on, plain
from medar.synthesis.upscaling import upscaling
from medar.tokenizer.inference import Labels
from medar.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """What all samples of a request share."""

    scene: Scene
    condition: Condition
    """Of a batch of one, on the model's device."""
    settings: SamplingSettings
    shared: dict[str, Any]
    """What is said of every sample."""
    mask: Labels | None = None
    """The label map that samples follow, on the scene's grid."""

    def about(self, seed: int) -> dict[str, Any]:
        """What is said of the sample of a seed; equal for equal samples."""
        return {**self.shared, "seed": seed}


def make_job(
    model: Generator,
    tokenizer: Tokenizer,
    request: Request,
    sampling: SamplingSettings,
    made_by: dict[str, Any],
) -> Job:
    """A request as the model takes it.

    Args:
        model: what is asked.
        tokenizer: with its plan.
        request: what for.
        sampling: settings where the request has none.
        made_by: what is said of every sample of the model.

    Raises:
        MedarError: something that the model cannot be asked for.
    """
    schema = model.config.condition.attributes
    values = attribute_values(schema, request.asked(schema))
    asked = {
        one.name: one.values[int(value)] if one.categorical else value
        for one, value in zip(schema, values, strict=True)
        if value == value  # not NaN
    }
    scene = _scene(tokenizer, request, asked.get(MODALITY))
    settings = request.sampling or sampling
    if request.guidance_scale is not None:
        settings = replace(settings, guidance_scale=request.guidance_scale)
    settings.check(model.schedule)
    if settings.guidance_scale and not asked and request.mask is None:
        note = f"guidance_scale {settings.guidance_scale:g} is ignored: there is no condition"
        scene = replace(scene, notes=(*scene.notes, note))
        settings = replace(settings, guidance_scale=0.0)
    given, mask, about = None, None, dict(scene.about)
    if request.mask is not None:
        plan = tokenizer.require_plan()
        mask = mask_on(model.config.condition, plan, request.mask, scene.grid)
        given = map_of(model.config.condition, plan, mask)
        about["mask"] = identity(request.mask, "mask")
    condition = Condition(attributes=torch.tensor([values], dtype=torch.float32), map=given)
    record = {"attributes": asked, "sampling": to_dict(settings), **about}
    return Job(
        scene=scene,
        condition=condition.to(device_of(tokenizer)),
        settings=settings,
        shared={**made_by, **record, "notes": list(scene.notes)},
        mask=mask,
    )


def _scene(tokenizer: Tokenizer, request: Request, asked: Any) -> Scene:
    plan = tokenizer.require_plan()
    modality = request.modality or asked or plan.sole_modality
    if request.inpaint is not None and request.region is not None:
        return inpainting(tokenizer, request.inpaint, request.region, modality)
    if request.upscale is not None:
        return upscaling(tokenizer, request.upscale, request.known_scales, modality)
    return plain(plan, modality, request.mask)
