"""`Synthesizer`: a trained generator and its tokenizer, from a request to volumes.

    request -> scene, condition -> tokens of a batch of seeds -> each decoded, placed -> Synthetic

Sample i of a call has the seed `seed + i` and depends on it alone, not on the others: `n` and the
batch size change nothing in it, but for what a library rounds otherwise in another batch: a token
differs then if its random number falls on the very edge.

B batch, L tokens over all scales.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from medar import __version__
from medar.errors import MedarError
from medar.generator.folder import generator_digest, load_generator
from medar.generator.generator import Generator, SamplingState
from medar.generator.sampling import decode_sample, fitting_batch_size, sample_and_decode
from medar.generator.settings import SamplingSettings
from medar.progress import track
from medar.synthesis.job import Job, make_job
from medar.synthesis.region import Region
from medar.synthesis.request import Request
from medar.synthesis.scene import Placed
from medar.tokenizer.inference import Array, DecodedArrays, Labels
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
        self, model: Generator, tokenizer: Tokenizer, sampling: SamplingSettings | None = None
    ) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer.eval()
        self.sampling = sampling or SamplingSettings()
        self.plan = tokenizer.require_plan()
        theirs = (tokenizer.config.schedule, tokenizer.codebook_size)
        if (model.schedule, model.codebook_size) != theirs:
            raise MedarError(
                f"generator of {model.schedule} and {model.codebook_size} codes; the tokenizer has "
                f"{theirs[0]} and {theirs[1]} codes"
            )

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, device: Literal["auto", "cpu", "cuda"] = "auto"
    ) -> "Synthesizer":
        """Of a model folder, or of the run that left it.

        Raises:
            MedarError: see `medar.generator.folder.load_generator`.
        """
        return cls(*load_generator(folder, device))

    @cached_property
    def _made_by(self) -> dict[str, Any]:
        """What every sample's record says of the model."""
        return {
            "synthetic": True,
            "medar": __version__,
            "class": type(self.model).__name__,
            "model": generator_digest(self.model),
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
        return asked or fitting_batch_size(self.model, job.settings)

    def _batches(
        self, job: Job, seeds: Sequence[int], size: int, preview: Preview | None
    ) -> Iterator[Synthetic]:
        known = job.scene.known

        def after_scale(state: SamplingState) -> None:
            if preview is not None:
                decoded = (decode_sample(self.tokenizer, row[None]) for row in state.latent)
                preview(len(state.scales), [self._placed(job, *one)[0] for one in decoded])

        made = sample_and_decode(
            self.model,
            self.tokenizer,
            job.condition.expand(len(seeds)),
            seeds,
            job.settings,
            known=None if known is None else known.expand(len(seeds)),
            batch_size=size,
            after_scale=after_scale,
        )
        for seed, (pyramid, array, labels) in zip(seeds, made, strict=True):
            image, label = self._placed(job, array, labels)
            yield Synthetic(
                image=image, label=label, pyramid=pyramid.to("cpu"), about=job.about(seed)
            )

    def _placed(self, job: Job, image: Array, label: Labels | None) -> Placed:
        """What was decoded, put where it belongs."""
        return job.scene.place(DecodedArrays(image, job.mask if label is None else label))


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
