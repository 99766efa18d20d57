"""`medar synthesize`: synthetic volumes from a trained generator."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from cyclopts import Parameter

from medar.cli.options import Reading
from medar.cli.output import note, print_json
from medar.errors import MedarError

if TYPE_CHECKING:
    from medar.data.plan import Plan
    from medar.generator.settings import SamplingSettings
    from medar.synthesis.region import Region
    from medar.synthesis.request import Request
    from medar.synthesis.synthesizer import Preview
    from medar.volume import Volume

Number = TypeVar("Number", int, float)

DRAWN = 16
"""Samples on the contact sheet, at most."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Choosing:
    """How tokens are chosen; what is not given is the model's own setting."""

    guidance_scale: float | None = None
    """Classifier-free guidance: how far to move away from the unconditional model; 0 turns it off.
    It rises from 0 at the first scale to this value at the last."""
    guidance_from: int | None = None
    """The first scale with guidance, from 0."""
    guidance_to: int | None = None
    """The scale before which guidance ends."""
    temperature: str | None = None
    """Below 1 likely tokens become likelier; one number, or one per scale: 1,1,0.9."""
    top_k: str | None = None
    """Keep only the K likeliest tokens, 0 for all; one number, or one per scale."""
    top_p: str | None = None
    """Keep only the likeliest tokens whose probabilities sum to this; one number, or one per
    scale."""

    def settings(self, own: "SamplingSettings") -> "SamplingSettings":
        """The model's settings with what is given here."""
        given: dict[str, Any] = {
            "guidance_scale": self.guidance_scale,
            "guidance_from": self.guidance_from,
            "guidance_to": self.guidance_to,
            "temperature": _per_scale("--temperature", self.temperature, float),
            "top_k": _per_scale("--top-k", self.top_k, int),
            "top_p": _per_scale("--top-p", self.top_p, float),
        }
        return replace(own, **{name: value for name, value in given.items() if value is not None})


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Given:
    """What samples start from."""

    mask: Path | None = None
    """A label map that samples follow; they lie around its middle. Or a folder of such: N samples
    of each, in OUT/NAME."""
    inpaint: Path | None = None
    """A volume of which REGION is filled; all other voxels stay as they are."""
    region: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None
    """A file on the grid of INPAINT, not 0 where it is to be filled; or a box: 10:20,0:16,4:12 in
    voxels along right, anterior, superior, or -20:15.5,0:30,40:60mm in scanner coordinates."""
    upscale: Path | None = None
    """A volume of low resolution; samples have its field of view and the plan's spacing."""
    known_scales: int | None = None
    """Scales that UPSCALE gives; default as many as its spacing allows."""


CHOOSING, GIVEN, READING = Choosing(), Given(), Reading()


def synthesize(
    model: Path,
    out: Path,
    /,
    *,
    n: Annotated[int, Parameter(name=("--n", "-n"))] = 1,
    seed: int = 0,
    class_: Annotated[str | None, Parameter(name="--class")] = None,
    set_: Annotated[list[str] | None, Parameter(name="--set")] = None,
    modality: Literal["CT", "MR"] | None = None,
    batch_size: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    preview: bool = False,
    json: bool = False,
    given: Given = GIVEN,
    choosing: Choosing = CHOOSING,
    reading: Reading = READING,
) -> None:
    """Make synthetic volumes, fill regions, raise resolution.

    Parameters
    ----------
    model
        Folder of the generator, or of the run that left it.
    out
        A new folder, or one that the same command left.
    n
        Number of volumes.
    seed
        Of the first; each further one has the next. A sample depends on its seed alone.
    class_
        A value of one of the model's categories.
    set_
        NAME=VALUE of an attribute; may be given several times.
    modality
        Whose intensities, where the model's plan has several; also what INPAINT or UPSCALE is,
        where the file does not say.
    batch_size
        Volumes at once; default as many as fit into half of the free memory.
    device
        "auto" is CUDA where there is one.
    preview
        Draw OUT/preview.png after each scale: four samples at most, a column a scale.
    json
        Print one JSON object: out, made, kept, images, contact_sheet.
    """
    from medar.report.artifacts import write_samples_sheet
    from medar.synthesis.samples import SHEET, fill
    from medar.synthesis.synthesizer import Synthesizer, seeds_from

    seeds = seeds_from(seed, n)
    synthesizer = Synthesizer.from_pretrained(model, device)
    made, kept = 0, 0
    images: list[Path] = []
    for folder, mask in _masks(out, given.mask).items():
        request = _request(
            synthesizer.plan,
            replace(given, mask=mask),
            reading,
            class_=class_,
            attributes=_assigned(set_ or []),
            modality=modality,
            sampling=choosing.settings(synthesizer.sampling),
        )
        job = synthesizer.job(request)
        note(*job.scene.notes)
        show = _preview(folder) if preview else None
        try:
            done = fill(folder, synthesizer, job, seeds, batch_size=batch_size, preview=show)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("the same command goes on from here") from None
        made, kept = made + done.made, kept + done.kept
        images += done.images
    several = len(synthesizer.plan.channels) > 1
    write_samples_sheet(images[:DRAWN], out / SHEET, several, modality)
    if json:
        said = {"out": out, "made": made, "kept": kept, "images": images}
        print_json({**said, "contact_sheet": out / SHEET})
    else:
        print(f"{out}: {made} volumes made, {kept} kept")


def _masks(out: Path, mask: Path | None) -> dict[Path, Path | None]:
    """The folders to fill, and the label map that the samples of each follow."""
    from medar.data.sources.files import find_volumes, ids_for, is_dicom_folder, stem_of

    if mask is None or not mask.is_dir() or is_dicom_folder(mask):
        return {out: mask}
    stems: dict[str, Path] = {}
    for path in find_volumes(mask):
        other = stems.setdefault(stem_of(path, mask), path)
        if other != path:
            raise MedarError(f"{path}: has the name of {other.name}; rename one of them")
    if not stems:
        raise MedarError(
            f"--mask {mask}: no volume found; a label map or a folder of such is needed"
        )
    return {out / name: stems[stem] for stem, name in ids_for(stems).items()}


def _request(plan: "Plan", given: Given, reading: Reading, **asked: Any) -> "Request":
    """What is asked for, its files read."""
    from medar.data.cases import read_for_plan
    from medar.synthesis.request import Request
    from medar.volume import read_volume

    def image(path: Path | None) -> "Volume | None":
        if path is None:
            return None
        return read_for_plan(plan, path, reading.options(), asked["modality"])

    return Request(
        mask=None if given.mask is None else read_volume(given.mask, labels=True),
        inpaint=image(given.inpaint),
        region=None if given.region is None else _region(given.region),
        upscale=image(given.upscale),
        known_scales=given.known_scales,
        **asked,
    )


def _region(text: str) -> "Region":
    from medar.synthesis.region import Box
    from medar.volume import read_volume

    return read_volume(text, labels=True) if Path(text).exists() else Box.parse(text)


def _assigned(pairs: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE pairs as a dictionary."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name or not value:
            raise MedarError(f"--set {pair}: NAME=VALUE is needed, such as --set age=60")
        if name in found:
            raise MedarError(f"--set {pair}: {name} is set to {found[name]} already")
        found[name] = value
    return found


def _per_scale(
    option: str, text: str | None, kind: Callable[[str], Number]
) -> Number | tuple[Number, ...] | None:
    """One number, or one a scale."""
    if text is None:
        return None
    try:
        values = tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise MedarError(
            f"{option} {text}: a number is needed, or one a scale such as 2,1,1"
        ) from error
    return values[0] if len(values) == 1 else values


def _preview(out: Path) -> "Preview":
    """Draws the batch after each scale."""
    from medar.report.montages import ScalePreview
    from medar.synthesis.samples import PREVIEW

    return ScalePreview(out / PREVIEW)
