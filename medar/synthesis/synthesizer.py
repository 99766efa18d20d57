"""`Synthesizer`: a trained generator and its tokenizer, from a request to volumes.

    request -> scene, condition -> tokens of a batch of seeds -> each decoded, placed -> Synthetic

Sample i of a call has the seed `seed + i` and depends on it alone, not on the others: `n` and the
batch size change nothing in it, but for what a library rounds otherwise in another batch: a token
differs then if its random number falls on the very edge.

B batch, L tokens over all scales.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from medar import __version__
from medar.errors import MedarError
from medar.generator.conditions import Condition
from medar.generator.folder import load_model, model_digest
from medar.generator.model import Known, TokenModel
from medar.generator.sampling import SamplingSettings, sample
from medar.progress import track
from medar.synthesis.job import Job, make_job
from medar.synthesis.memory import batch_size as fitting
from medar.synthesis.region import Region
from medar.synthesis.request import Request
from medar.synthesis.scene import Placed
from medar.tokenizer.inference import decoded_arrays
from medar.tokenizer.pyramid import TokenPyramid
from medar.tokenizer.tokenizer import Tokenizer
from medar.volume import Volume

Preview = Callable[[int, list[Volume]], None]
"""Given the number of scales that are done and the volumes of the batch as they are by then."""

SEEDS = 1 << 63
"""Seeds are below it: more than torch takes would be an error in the midst of a run."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Synthetic:
    """A synthetic volume."""

    image: Volume
    """On the plan's grid, or that of what was given; in HU, or the modality's range."""
    label: Volume | None
    """Its label map: as decoded by a label head, else the mask that the volume follows."""
    pyramid: TokenPyramid
    """Its tokens, a batch of one."""
    about: dict[str, Any]
    """What it was made by, as JSON-able values; `synthetic` is true."""


class Synthesizer:
    """Makes volumes.

    Args:
        model: trained on the tokens of `tokenizer`; on the same device.
        tokenizer: with its plan.
        sampling: how tokens are chosen where nothing else is asked for.

    Raises:
        MedarError: a tokenizer without a plan, or of another schedule than the model's.
    """

    def __init__(
        self, model: TokenModel, tokenizer: Tokenizer, sampling: SamplingSettings | None = None
    ) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer.eval()
        self.sampling = sampling or SamplingSettings()
        self.plan = tokenizer.require_plan()
        theirs = (tokenizer.config.schedule, tokenizer.codebook_size)
        if (model.schedule, model.codes) != theirs:
            raise MedarError(
                f"generator of {model.schedule} and {model.codes} codes; the tokenizer has "
                f"{theirs[0]} and {theirs[1]} codes"
            )

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, device: Literal["auto", "cpu", "cuda"] = "auto"
    ) -> "Synthesizer":
        """Of a model folder, or of the run that left it.

        Raises:
            MedarError: see `load_model`.
        """
        loaded = load_model(folder, device)
        return cls(loaded.model, loaded.tokenizer, loaded.sampling)

    @cached_property
    def _made_by(self) -> dict[str, Any]:
        """What every sample's record says of the model."""
        return {
            "synthetic": True,
            "medar": __version__,
            "class": type(self.model).__name__,
            "model": model_digest(self.model),
            "tokenizer": self.tokenizer.digest,
        }

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
        guidance_scale: float | None = None,
        sampling: SamplingSettings | None = None,
    ) -> list[Synthetic]:
        """Make volumes.

        Args:
            n: how many.
            seed: of the first; each further one has the next.
            batch_size: volumes at once; default as many as fit into memory.
            preview: called after each scale.
            class_, attributes, modality, mask, inpaint, region, upscale, known_scales,
                guidance_scale, sampling: see `Request`.

        Raises:
            MedarError: no volume is asked for, or something that the model cannot be asked for.
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
            guidance_scale=guidance_scale,
            sampling=sampling,
        )
        seeds = seeds_from(seed, n)
        return list(self.run(self.job(request), seeds, batch_size=batch_size, preview=preview))

    def job(self, request: Request) -> Job:
        """A request as the model takes it.

        Raises:
            MedarError: something that the model cannot be asked for.
        """
        return make_job(self.model, self.tokenizer, request, self.sampling, self._made_by)

    def run(
        self,
        job: Job,
        seeds: Sequence[int],
        *,
        batch_size: int | None = None,
        preview: Preview | None = None,
    ) -> Iterator[Synthetic]:
        """The samples of some seeds, one after the other as they are ready.

        Args:
            job: what is asked for.
            seeds: one a sample.
            batch_size: volumes at once; default as many as fit into memory.
            preview: called after each scale.

        Raises:
            MedarError: a batch size below 1.
        """
        made = self._batches(job, seeds, self.batch_size(job, batch_size), preview)
        return track(made, total=len(seeds), label="synthesize", unit="volume")

    def batch_size(self, job: Job, asked: int | None = None) -> int:
        """Volumes at once: as asked, or as many as fit into memory.

        Raises:
            MedarError: fewer than one is asked for.
        """
        if asked is not None and asked < 1:
            raise MedarError(f"batch size {asked}: a whole number from 1 is needed")
        return asked or fitting(self.model, job.settings)

    @torch.no_grad()
    def _batches(
        self, job: Job, seeds: Sequence[int], size: int, preview: Preview | None
    ) -> Iterator[Synthetic]:
        for start in range(0, len(seeds), size):
            part = seeds[start : start + size]
            tokens = sample(
                self.model,
                _repeated(job.condition, len(part)),
                part,
                job.settings,
                known=_repeated_known(job.scene.known, len(part)),
                after_part=None if preview is None else self._previewed(job, preview),
            )
            for place, seed in enumerate(part):
                pyramid = self._pyramid(tokens[place : place + 1])
                image, label = self._placed(job, pyramid)
                yield Synthetic(
                    image=image, label=label, pyramid=pyramid.to("cpu"), about=job.about(seed)
                )

    def _pyramid(self, tokens: Tensor) -> TokenPyramid:
        return TokenPyramid.from_flat(
            tokens, self.model.schedule, self.model.codes, self.tokenizer.digest
        )

    def _placed(self, job: Job, pyramid: TokenPyramid) -> Placed:
        """A pyramid of one decoded and put where it belongs, alone: no batch changes a bit of it.

        Training volumes lie within [-1, 1], and so do samples.
        """
        inferred = decoded_arrays(self.tokenizer.decode_map(pyramid), self.plan)
        if inferred.label is None:
            inferred = inferred._replace(label=job.mask)
        return job.scene.place(inferred._replace(image=np.clip(inferred.image, -1.0, 1.0)))

    def _previewed(self, job: Job, preview: Preview) -> Callable[[int, list[Tensor]], None]:
        """What is called after each part, for a preview after each scale."""
        ends = list(accumulate(self.model.schedule.tokens))
        at = {part: done for part, done in enumerate(accumulate(self.model.parts)) if done in ends}

        def after_part(part: int, chosen: list[Tensor]) -> None:
            if part in at:
                tokens = torch.cat(chosen, dim=1)
                rows = (self._pyramid(row[None]) for row in tokens)
                preview(ends.index(at[part]) + 1, [self._placed(job, row)[0] for row in rows])

        return after_part


def seeds_from(seed: int, n: int) -> range:
    """The seeds of n samples.

    Raises:
        MedarError: fewer than one sample, or a seed below 0 or beyond 64 bits.
    """
    if n < 1:
        raise MedarError(f"n {n}: at least one volume is needed")
    if seed < 0:
        raise MedarError(f"seed {seed}: a whole number from 0 is needed")
    if seed + n > SEEDS:
        raise MedarError(f"seed {seed}: the last of {n} must be below 2^63, {SEEDS}")
    return range(seed, seed + n)


def _repeated(condition: Condition, batch: int) -> Condition:
    """The same for a batch; a map is that of all."""
    return replace(condition, attributes=condition.attributes.expand(batch, -1))


def _repeated_known(known: Known | None, batch: int) -> Known | None:
    if known is None:
        return None
    latent = known.latent.expand(batch, -1, -1, -1, -1)
    return Known(mask=known.mask.expand(batch, -1), latent=latent)
