"""`medar synthesize`: synthetic volumes from a trained generator."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from cyclopts import Parameter

from medar.cli.options import THIS_MACHINE, Cluster, Reading, parse_detail
from medar.cli.output import note, print_json
from medar.devices import InferencePrecision
from medar.errors import MedarError
from medar.words import format_count

if TYPE_CHECKING:
    from medar.generator.settings import SamplingSettings
    from medar.synthesis.region import Region
    from medar.synthesis.synthesizer import Preview
    from medar.volume import Volume

Number = TypeVar("Number", int, float)

MAX_SHOWN = 16
"""Largest number of samples on the contact sheet."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How tokens are chosen and decoded; options left out are the model's own settings."""

    guidance_scale: float | None = None
    """Classifier-free guidance: how far to move away from the unconditional model; 0 turns it off.
    It rises from 0 at the first scale to this value at the last."""
    guidance_from: int | None = None
    """First scale with guidance, counted from 0."""
    guidance_to: int | None = None
    """First scale after those with guidance; default: guidance up to the last scale."""
    temperature: str | None = None
    """Sampling temperature; below 1, likely tokens become likelier. One number, or one per scale,
    such as 1,1,0.9; auto: 1, but 0.7 and 0.3 at the last two of four or more scales."""
    top_k: str | None = None
    """Sample from the K likeliest tokens only, 0 for all; one number, or one per scale."""
    top_p: str | None = None
    """Sample only from the likeliest tokens whose probabilities sum to this; one number, or one per
    scale."""
    passes: str | None = None
    """Passes in which the tokens of a scale are drawn, each seeing those drawn before it: one
    number, or one per scale; 1 is fastest, auto takes many in small scales and one in the last."""
    detail: str | None = None
    """Steps of the detail decoder; "none": without it; "auto": its own number of steps."""
    precision: InferencePrecision | None = None
    """What networks compute in. "auto": bf16 for decoding where the device has instructions for it,
    and for tokens on CUDA; "bf16": for both; "fp32": for neither."""

    def settings(self, defaults: "SamplingSettings") -> "SamplingSettings":
        """The model's settings, overridden by these options."""
        options: dict[str, Any] = {
            "guidance_scale": self.guidance_scale,
            "guidance_from": self.guidance_from,
            "guidance_to": self.guidance_to,
            "temperature": _automatic("--temperature", self.temperature, float),
            "top_k": _per_scale("--top-k", self.top_k, int),
            "top_p": _per_scale("--top-p", self.top_p, float),
            "passes": _automatic("--passes", self.passes, int),
            "detail": None if self.detail is None else parse_detail(self.detail),
            "precision": self.precision,
        }
        return replace(defaults, **{name: v for name, v in options.items() if v is not None})


SAMPLING, READING = SamplingOptions(), Reading()


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
    mask: Path | None = None,
    inpaint: Path | None = None,
    region: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    upscale: Path | None = None,
    known_scales: int | None = None,
    until_scale: int | None = None,
    continue_: Annotated[list[Path] | None, Parameter(name="--continue")] = None,
    batch_size: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    preview: bool = False,
    json: bool = False,
    cluster: Cluster = THIS_MACHINE,
    sampling: SamplingOptions = SAMPLING,
    reading: Reading = READING,
) -> int:
    """Synthesize volumes, inpaint regions, increase resolution.

    Parameters
    ----------
    model
        Folder of a generator, or of its training run; or a name of `medar models`.
    out
        A new folder, or one that the same command wrote.
    n
        Number of volumes.
    seed
        Seed of the first volume; the volumes after it use SEED + 1, SEED + 2 and so on. A volume
        depends only on its own seed.
    class_
        Value of a categorical attribute that the model was trained with.
    set_
        NAME=VALUE of an attribute; may be repeated.
    modality
        Modality of the volumes, if the model's plan has several; also of INPAINT and UPSCALE, if
        the file does not state it.
    mask
        Label map that the samples follow; they are centred on it. For a folder of label maps, N
        samples of each in OUT/NAME.
    inpaint
        Volume in which REGION is filled; all other voxels stay unchanged.
    region
        Mask file on the grid of INPAINT, nonzero where the volume is filled; or a box:
        10:20,0:16,4:12 in voxels along right, anterior, superior, or -20:15.5,0:30,40:60mm in
        scanner coordinates.
    upscale
        Low-resolution volume; samples have its field of view and the plan's spacing.
    known_scales
        Number of scales taken from UPSCALE; default: as many as its spacing allows.
    until_scale
        Draw the first scales only: drafts, OUT/draft_0000.nii.gz and so on, without detail, to look
        at before those that are chosen are continued.
    continue_
        Draft to finish, such as drafts/draft_0007; may be repeated. Seed, attributes and sampling
        are the draft's; give MASK, INPAINT, REGION, UPSCALE and MODALITY again. An edited MASK
        steers the scales that are left.
    batch_size
        Volumes sampled at once; default: limited by half of the free memory.
    device
        "auto": CUDA if available.
    preview
        Draw OUT/preview.png after each scale: at most four samples, one column per scale.
    json
        Print one JSON object: out, made, kept, images, failed (label maps that are left out, with
        reasons), contact_sheet.
    """
    from medar.data.reading import read_for_plan, read_label_map
    from medar.report.artifacts import write_samples_sheet
    from medar.synthesis.drafts import read_draft
    from medar.synthesis.request import Request
    from medar.synthesis.samples import SHEET, write_samples
    from medar.synthesis.synthesizer import Synthesizer, seeds_from

    drafts = [read_draft(path) for path in continue_ or []]
    if drafts:
        given = {
            "-n": n != 1, "--seed": seed != 0, "--class": class_, "--set": set_,
            "--until-scale": until_scale, "a sampling option": sampling != SAMPLING,
            "a folder for --mask": mask is not None and mask.is_dir(),
        }  # fmt: skip
        for name in (name for name, one in given.items() if one):
            raise MedarError(f"{name} does not go with --continue, which takes it from the draft")
    seeds = [draft.seed for draft in drafts] or seeds_from(seed, n)
    if out.exists() and not out.is_dir():  # before the notes of a model
        raise MedarError(f"{out}: is a file; OUT names a folder")
    synthesizer = Synthesizer.from_pretrained(model, device)
    plan = synthesizer.plan

    def image(path: Path | None) -> "Volume | None":
        return None if path is None else read_for_plan(plan, path, reading.options(), modality)

    if preview and cluster.address is not None:
        raise MedarError("--preview: not drawn on a cluster; omit it, or --cluster")
    images: list[Path] = []
    failed: dict[str, str] = {}
    made = 0
    folders = _folders(out, mask)
    with cluster.use(model, out=out):
        for folder, path in folders.items():
            try:
                label_map = None if path is None else read_label_map(path, plan.labels)
            except MedarError as error:
                if path == mask or len(failed) == len(folders) - 1:
                    raise
                failed[str(path)] = str(error)
                note(f"{path}: left out: {error}")
                continue
            inputs: dict[str, Any] = {
                "modality": modality,
                "mask": label_map,
                "inpaint": image(inpaint),
                "region": None if region is None else _region(region),
                "upscale": image(upscale),
                "known_scales": known_scales,
            }
            if drafts:
                request = Request.finishing(drafts, **inputs)
            else:
                request = Request(
                    class_=class_,
                    attributes=_assignments(set_ or []),
                    sampling=sampling.settings(synthesizer.sampling),
                    until_scale=until_scale,
                    **inputs,
                )
            job = synthesizer.job(request)
            note(*job.notes)
            show = _preview(folder) if preview else None
            try:
                written, new = write_samples(
                    folder, synthesizer, job, seeds, batch_size=batch_size, preview=show
                )
            except KeyboardInterrupt:
                raise KeyboardInterrupt("the same command resumes") from None
            images, made = images + written, made + new
    write_samples_sheet(images[:MAX_SHOWN], out / SHEET, len(plan.channels) > 1, modality)
    if json:
        counts = {"out": out, "made": made, "kept": len(images) - made, "images": images}
        print_json({**counts, "failed": failed, "contact_sheet": out / SHEET})
    else:
        kind = "volume" if until_scale is None else "draft"
        print(f"{out}: {format_count(made, kind)} made, {len(images) - made} kept")
    return 1 if failed else 0


def _folders(out: Path, mask: Path | None) -> dict[Path, Path | None]:
    """The folders to fill, each with the label map that its samples follow."""
    from medar.data.sources.files import find_volumes, ids_for, is_dicom_folder, stem_of

    if mask is None or not mask.is_dir() or is_dicom_folder(mask):
        return {out: mask}
    stems: dict[str, Path] = {}
    for path in find_volumes(mask):
        other = stems.setdefault(stem_of(path, mask), path)
        if other != path:
            raise MedarError(f"{path}: has the same name as {other.name}; rename one of them")
    if not stems:
        raise MedarError(
            f"--mask {mask}: no volume found; give a label map, or a folder of label maps"
        )
    return {out / name: stems[stem] for stem, name in ids_for(stems).items()}


def _region(text: str) -> "Region":
    from medar.synthesis.region import Box
    from medar.volume import read_volume

    return read_volume(text, labels=True) if Path(text).exists() else Box.parse(text)


def _assignments(pairs: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE pairs as a dictionary."""
    values: dict[str, str] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name or not value:
            raise MedarError(f"--set {pair}: must be NAME=VALUE, such as --set age=60")
        if name in values:
            raise MedarError(f"--set {pair}: {name} is already set to {values[name]}")
        values[name] = value
    return values


def _per_scale(
    option: str, text: str | None, kind: Callable[[str], Number]
) -> Number | tuple[Number, ...] | None:
    """One number, or one per scale."""
    if text is None:
        return None
    try:
        values = tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise MedarError(
            f"{option} {text}: must be a number, or one per scale such as 2,1,1"
        ) from error
    return values[0] if len(values) == 1 else values


def _automatic(
    option: str, text: str | None, kind: Callable[[str], Number]
) -> str | Number | tuple[Number, ...] | None:
    """ "auto", one number, or one per scale."""
    if text == "auto":
        return text
    try:
        return _per_scale(option, text, kind)
    except MedarError as error:
        number = "a number" if kind is float else "an integer"
        raise MedarError(
            f"{option} {text}: must be auto, {number}, or one per scale such as 4,2,1"
        ) from error


def _preview(out: Path) -> "Preview":
    """Draws the batch after each scale."""
    from medar.report.montages import ScalePreview
    from medar.synthesis.samples import PREVIEW

    return ScalePreview(out / PREVIEW)
