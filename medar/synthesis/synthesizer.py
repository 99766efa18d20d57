"""`Synthesizer`: a trained generator with its tokenizer, from a request to volumes.

    request -> job -> tokens of a batch of seeds -> decoded one by one -> restored -> volumes

Sample i of a call has the seed `seed + i` and depends only on it: neither `n` nor the batch size
change it, except for rounding (docs/reference/synthesis.md).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from medar.devices import DeviceName, device_of, inference_precision
from medar.errors import MedarError
from medar.generator.attributes import MODALITY, attribute_values
from medar.generator.conditions import Condition
from medar.generator.generator import Generator, SamplingState
from medar.generator.sampling import (
    decode_sample,
    fitting_batch_size,
    sample_and_decode,
    token_precision,
)
from medar.generator.settings import SamplingSettings
from medar.model_folder import holds_model
from medar.progress import track
from medar.records import is_run
from medar.settings import to_dict
from medar.synthesis.drafts import Draft
from medar.synthesis.inpainting import inpainting_job
from medar.synthesis.job import SynthesisJob, as_condition, identity, label_map, plain_job
from medar.synthesis.region import Region
from medar.synthesis.request import Request
from medar.synthesis.translation import translation_job
from medar.synthesis.upscaling import upscaling_job
from medar.tokenizer.pyramid import TokenPyramid, joined
from medar.tokenizer.tokenizer import Tokenizer
from medar.version import __version__
from medar.volume import Volume

Preview = Callable[[int, list[Volume]], None]
"""Called with the number of sampled scales and the volumes of the batch decoded from them."""

MAX_SEED = (1 << 63) - 1
"""Torch would fail on larger ones in the middle of a run."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SyntheticVolume:
    """A synthetic volume with its record."""

    image: Volume
    """On the plan's grid, or that of the input; in HU, or the modality's range."""
    label: Volume | None
    """Its label map: decoded by a label head, else the mask that it follows."""
    pyramid: TokenPyramid
    """Its tokens, a batch of one, on the CPU."""
    about: dict[str, Any]
    """The record, as JSON-able values; `synthetic` is true."""


class Synthesizer:
    """Makes volumes.

    Args:
        model: trained on the tokens of `tokenizer`; on the same device.
        tokenizer: with its plan.
        sampling: default sampling settings.

    Raises:
        MedarError: a tokenizer without a plan, or of another schedule than the model's.
    """

    def __init__(
        self, model: Generator, tokenizer: Tokenizer, sampling: SamplingSettings | None = None
    ) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer.eval()
        self.sampling = sampling or SamplingSettings()
        self.loaded_from: tuple[str, str] | None = None
        self.plan = tokenizer.require_plan()
        theirs = (tokenizer.config.schedule, tokenizer.codebook_size)
        if (model.schedule, model.codebook_size) != theirs:
            raise MedarError(
                f"generator of {model.schedule} and {model.codebook_size} codes; the tokenizer has "
                f"{theirs[0]} and {theirs[1]} codes"
            )

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: DeviceName = "auto") -> "Synthesizer":
        """The synthesizer of a model.

        Args:
            folder: the model folder, that of its training run or of a recipe; or a name
                (`find_model`), such as "hippocampus-mr".
            device: "auto" is CUDA where available.

        Raises:
            MedarError: see `Generator.load`.
        """
        synthesizer = cls(*Generator.load(folder, device))
        synthesizer.loaded_from = str(folder), device
        if is_run(Path(folder)) and holds_model(folder, "tokenizer"):
            # The detail decoder that the generator's folder holds may be of an earlier training.
            latest = Tokenizer.from_pretrained(folder, device)
            if latest.detail is not None and latest.digest == synthesizer.tokenizer.digest:
                synthesizer.tokenizer = synthesizer.tokenizer.with_detail(latest.detail)
        return synthesizer

    def __call__(
        self,
        n: int = 1,
        *,
        seed: int = 0,
        batch_size: int | None = None,
        preview: Preview | None = None,
        class_: str | None = None,
        attributes: Mapping[str, Any] | None = None,
        modality: str | None = None,
        mask: Volume | None = None,
        inpaint: Volume | None = None,
        region: Region | None = None,
        upscale: Volume | None = None,
        known_scales: int | None = None,
        source: Volume | None = None,
        model_spacing: bool = False,
        guidance_scale: float | None = None,
        sampling: SamplingSettings | None = None,
        until_scale: int | None = None,
    ) -> list[SyntheticVolume]:
        """Make volumes.

        Args:
            n: how many.
            seed: of the first; each further one has the next.
            batch_size: volumes sampled at once; default: limited by memory.
            preview: called after each scale.
            class_, attributes, modality, mask, inpaint, region, upscale, known_scales, source,
                model_spacing, guidance_scale, sampling, until_scale: see `Request`.

        Raises:
            MedarError: `n` below 1, an invalid seed, or a request that the model cannot fulfil.
        """
        request = Request(
            class_=class_,
            attributes=attributes or {},
            modality=modality,
            mask=mask,
            inpaint=inpaint,
            region=region,
            upscale=upscale,
            known_scales=known_scales,
            source=source,
            model_spacing=model_spacing,
            guidance_scale=guidance_scale,
            sampling=sampling,
            until_scale=until_scale,
        )
        seeds = seeds_from(seed, n)
        return list(self.run(self.job(request), seeds, batch_size=batch_size, preview=preview))

    def finish(
        self, drafts: Sequence[Draft | SyntheticVolume], **inputs: Any
    ) -> list[SyntheticVolume]:
        """Continue drafts to the last scale.

        Args:
            drafts: made with `until_scale`, or read by `medar.synthesis.drafts.read_draft`.
            inputs: see `Request.finishing`; the mask may be edited.

        Raises:
            MedarError: see `job`.
        """
        begun = [
            draft if isinstance(draft, Draft) else Draft(tokens=draft.pyramid, about=draft.about)
            for draft in drafts
        ]
        request = Request.finishing(begun, **inputs)
        return list(self.run(self.job(request), [draft.seed for draft in begun]))

    def job(self, request: Request) -> SynthesisJob:
        """Prepare a request: read its inputs into tokens and conditions.

        Raises:
            MedarError: the model cannot fulfil it, or a draft was made by another model or from
                other inputs than the mask.
        """
        conditions = self.model.config.condition
        values = attribute_values(conditions.attributes, request.all_attributes(conditions))
        attributes = {
            one.name: one.values[int(value)] if one.categorical else value
            for one, value in zip(conditions.attributes, values, strict=True)
            if value == value  # not NaN
        }
        modality = request.modality or attributes.get(MODALITY)
        job = self._start(request, None if modality is None else str(modality))
        sampling, notes = request.sampling or self.sampling, job.notes
        if request.guidance_scale is not None:
            sampling = replace(sampling, guidance_scale=request.guidance_scale)
        sampling.check(self.model.schedule, self.model.config.refinement)
        self.tokenizer.detail_steps(sampling.detail)
        mapped = request.mask is not None or request.source is not None
        if sampling.guidance_scale and not attributes and not mapped:
            note = f"guidance_scale {sampling.guidance_scale:g} is ignored: there is no condition"
            sampling, notes = replace(sampling, guidance_scale=0.0), (*notes, note)
        mask, map_ = None, job.condition.map
        record = {
            **self._origin,
            "attributes": attributes,
            "sampling": to_dict(sampling),
            "precision": self.precision(sampling),
        }
        if request.mask is not None:
            mask = label_map(conditions, self.plan, request.mask, job.grid)
            map_ = as_condition(conditions, self.plan, mask)
            record["mask"] = identity(request.mask, "mask")
        condition = Condition(attributes=torch.tensor([values], dtype=torch.float32), map=map_)
        record = {**record, **job.record, **self._drafted(request)}
        for draft in request.drafts:
            draft.check({name: record[name] for name in ("model", "tokenizer")}, record)
        return replace(
            job,
            until=request.until_scale,
            begun={draft.seed: draft.tokens for draft in request.drafts},
            condition=condition.to(device_of(self.tokenizer)),
            sampling=sampling,
            mask=mask,
            record=record,
            request=request,
            notes=notes,
        )

    def run(
        self,
        job: SynthesisJob,
        seeds: Sequence[int],
        *,
        batch_size: int | None = None,
        preview: Preview | None = None,
    ) -> Iterator[SyntheticVolume]:
        """Make the samples of some seeds, one after the other as they are ready.

        Args:
            job: see `job`.
            seeds: one per sample.
            batch_size: volumes sampled at once; default: limited by memory.
            preview: called after each scale.

        Raises:
            MedarError: a batch size below 1.
        """
        made = self._run(job, seeds, self.batch_size(job, batch_size), preview)
        return track(made, total=len(seeds), label="synthesize", unit="volume")

    def batch_size(self, job: SynthesisJob, requested: int | None = None) -> int:
        """Volumes sampled at once: as requested, or as memory allows.

        Raises:
            MedarError: less than 1 is requested.
        """
        if requested is not None and requested < 1:
            raise MedarError(f"batch size must be at least 1, got {requested}")
        return requested or fitting_batch_size(self.model, job.sampling)

    def _drafted(self, request: Request) -> dict[str, int]:
        """The entry of a draft's record.

        Raises:
            MedarError: a number of scales that leaves nothing to draw.
        """
        until, scales = request.until_scale, len(self.model.schedule)
        if until is None:
            return {}
        if not 1 <= until < scales:
            raise MedarError(
                f"until_scale must be from 1 to {scales - 1}, got {until}: this model has {scales} "
                "scales"
            )
        return {"until_scale": until}

    def _start(self, request: Request, modality: str | None) -> SynthesisJob:
        modality = modality or self.plan.sole_modality
        if request.inpaint is not None and request.region is not None:
            return inpainting_job(self.tokenizer, request.inpaint, request.region, modality)
        if request.source is not None:
            return translation_job(
                self.model.config.condition,
                self.plan,
                request.source,
                modality,
                model_spacing=request.model_spacing,
            )
        if request.upscale is not None:
            return upscaling_job(self.tokenizer, request.upscale, request.known_scales, modality)
        return plain_job(self.plan, modality, request.mask)

    def _run(
        self, job: SynthesisJob, seeds: Sequence[int], batch_size: int, preview: Preview | None
    ) -> Iterator[SyntheticVolume]:
        def show(state: SamplingState) -> None:
            if preview is not None:
                decoded = (
                    decode_sample(self.tokenizer, latent[None], precision=job.sampling.precision)
                    for latent in state.latent
                )
                preview(len(state.scales), [job.restore(*one)[0] for one in decoded])

        sampled = sample_and_decode(
            self.model,
            self.tokenizer,
            job.condition.expand(len(seeds)),
            seeds,
            job.sampling,
            known=None if job.known is None else job.known.expand(len(seeds)),
            begun=joined([job.begun[seed] for seed in seeds]) if job.begun and seeds else None,
            until=job.until,
            batch_size=batch_size,
            after_scale=show,
        )
        for seed, (pyramid, array, labels) in zip(seeds, sampled, strict=True):
            image, label = job.restore(array, job.mask if labels is None else labels)
            yield SyntheticVolume(
                image=image, label=label, pyramid=pyramid.to("cpu"), about=job.about(seed)
            )

    @property
    def digest(self) -> str:
        """Hashes of generator and tokenizer."""
        return f"{self.model.digest}+{self.tokenizer.digest}"

    def precision(self, sampling: SamplingSettings) -> dict[str, str]:
        """What tokens and volumes are computed in; on another device it may differ."""
        device = device_of(self.tokenizer)
        return {
            "tokens": token_precision(device, sampling.precision),
            "decoding": inference_precision(device, sampling.precision),
        }

    @cached_property
    def _origin(self) -> dict[str, Any]:
        """The model's entries in every sample's record."""
        return {
            "synthetic": True,
            "medar": __version__,
            "class": type(self.model).__name__,
            "model": self.model.digest,
            "tokenizer": self.tokenizer.digest,
        }


def seeds_from(seed: int, n: int) -> range:
    """The seeds of n samples.

    Raises:
        MedarError: less than one sample, or a seed below 0 or of more than 63 bits.
    """
    if n < 1:
        raise MedarError(f"n must be at least 1, got {n}")
    if seed < 0:
        raise MedarError(f"seed must be at least 0, got {seed}")
    if seed + n - 1 > MAX_SEED:
        raise MedarError(f"seed {seed}: the last of {n} seeds must be below 2^63")
    return range(seed, seed + n)
