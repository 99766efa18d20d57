"""`medar synthesize`: synthetic volumes from a trained generator."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from medar.cli.options import THIS_MACHINE, Cluster, Reading
from medar.cli.samples import write_requests
from medar.cli.sampling import SAMPLING, SamplingOptions, assignments
from medar.errors import MedarError

if TYPE_CHECKING:
    from medar.synthesis.region import Region
    from medar.volume import Volume

READING = Reading()


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
    from medar.synthesis.drafts import read_draft
    from medar.synthesis.request import Request
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

    def request(path: Path | None) -> Request:
        inputs: dict[str, Any] = {
            "modality": modality,
            "mask": None if path is None else read_label_map(path, plan.labels),
            "inpaint": image(inpaint),
            "region": None if region is None else _region(region),
            "upscale": image(upscale),
            "known_scales": known_scales,
        }
        if drafts:
            return Request.finishing(drafts, **inputs)
        return Request(
            class_=class_,
            attributes=assignments(set_ or []),
            sampling=sampling.settings(synthesizer.sampling),
            until_scale=until_scale,
            **inputs,
        )

    if preview and cluster.address is not None:
        raise MedarError("--preview: not drawn on a cluster; omit it, or --cluster")
    with cluster.use(model, out=out):
        return write_requests(
            out,
            synthesizer,
            _folders(out, mask),
            request,
            seeds,
            batch_size=batch_size,
            preview=preview,
            json=json,
        )


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
