"""`medar translate`: volumes from other volumes of the same patients, by a trained generator."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from medar.cli.options import THIS_MACHINE, Cluster, Reading
from medar.cli.output import note
from medar.cli.samples import write_requests
from medar.cli.sampling import SAMPLING, SamplingOptions, assignments
from medar.errors import MedarError

if TYPE_CHECKING:
    from medar.data.case import Case

READING = Reading()


def translate(
    model: Path,
    in_: Annotated[Path, Parameter(name="IN")],
    out: Path,
    /,
    *,
    n: Annotated[int, Parameter(name=("--n", "-n"))] = 1,
    seed: int = 0,
    class_: Annotated[str | None, Parameter(name="--class")] = None,
    set_: Annotated[list[str] | None, Parameter(name="--set")] = None,
    modality: Literal["CT", "MR"] | None = None,
    model_spacing: bool = False,
    batch_size: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    json: bool = False,
    cluster: Cluster = THIS_MACHINE,
    sampling: SamplingOptions = SAMPLING,
    reading: Reading = READING,
) -> int:
    """Translate volumes: to another modality or contrast, from thick slices, from noise.

    Parameters
    ----------
    model
        Folder of a generator, or of its training run; or a name of `medar models`.
    in_
        The volume to translate. For a data set, such as a folder of volumes, N samples of each case
        in OUT/ID; label maps in it are left out.
    out
        A new folder, or one that the same command wrote.
    n
        Number of samples of each volume: where they differ, IN does not determine the result.
    seed
        Seed of the first sample; those after it use SEED + 1, SEED + 2 and so on.
    class_
        Value of a categorical attribute that the model was trained with.
    set_
        NAME=VALUE of an attribute; may be repeated.
    modality
        Modality of the results, if the model's plan has several.
    model_spacing
        Results have the model's spacing and the field of view of IN.
    batch_size
        Volumes sampled at once; default: limited by half of the free memory.
    device
        "auto": CUDA if available.
    json
        Print one JSON object: out, made, kept, images, failed (volumes that are left out, with
        reasons), contact_sheet.
    """
    from medar.data.reading import merged_reading
    from medar.synthesis.request import Request
    from medar.synthesis.synthesizer import Synthesizer, seeds_from
    from medar.volume import read_volume

    seeds = seeds_from(seed, n)
    if out.exists() and not out.is_dir():  # before the notes of a model
        raise MedarError(f"{out}: is a file; OUT names a folder")
    synthesizer = Synthesizer.from_pretrained(model, device)
    options = merged_reading(synthesizer.plan.reading, reading.options())
    cases = _cases(in_)
    modalities = {case.images[0]: case.modality for case in cases}

    def request(path: Path | None) -> Request:
        assert path is not None, "IN is given"
        return Request(
            class_=class_,
            attributes=assignments(set_ or []),
            modality=modality,
            source=read_volume(path, **options.to_dict(), modality=modalities.get(path)),
            model_spacing=model_spacing,
            sampling=sampling.settings(synthesizer.sampling),
        )

    with cluster.use(model, in_, out=out):
        return write_requests(
            out,
            synthesizer,
            {out / case.id: case.images[0] for case in cases} or {out: in_},
            request,
            seeds,
            batch_size=batch_size,
            json=json,
        )


def _cases(path: Path) -> "tuple[Case, ...]":
    """The volumes to translate; none if `path` is a single one.

    Raises:
        MedarError: a data set without volumes, or with several channels.
    """
    from medar.data.sources import read_manifest
    from medar.data.sources.files import is_dicom_folder

    is_file = path.is_file() and path.suffix not in (".json", ".jsonl")
    if is_file or (path.is_dir() and is_dicom_folder(path)):
        return ()
    manifest = read_manifest(path)
    note(*manifest.notes)
    several = next((case for case in manifest if len(case.images) > 1), None)
    if several is not None:
        raise MedarError(
            f"{path}: case {several.id} has {len(several.images)} channels; a source volume has one"
        )
    return manifest.cases
