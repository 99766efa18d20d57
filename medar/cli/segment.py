"""`medar segment`: label maps of anybody's files."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from medar.cli.options import Reading
from medar.cli.output import note, print_json
from medar.errors import MedarError

READING = Reading()


def segment(
    *places: Annotated[Path, Parameter(name="MODEL... IN OUT")],
    mirrors: str | None = None,
    overlap: float = 0.5,
    probabilities: bool = False,
    modality: Literal["CT", "MR"] | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    json: bool = False,
    reading: Reading = READING,
) -> int:
    """Label maps of volumes; `medar.cli.main` says the rest.

    Parameters
    ----------
    places
        MODEL: folder of the segmentation network, or of the run that left it; of
        several the mean of the chances is taken. IN: a volume file, the folder of a DICOM series,
        or a folder of such at any depth; of several channels x_0000, x_0001, ... as nnU-Net names
        them, or one 4D file. OUT: the label map, .nii or .nii.gz; for a folder of
        volumes a folder.
    mirrors
        Axes to mirror along, the mean being taken: "none", or some of xyz; default those that the
        network was trained with.
    overlap
        Share of a window that it has in common with its neighbour.
    probabilities
        Write the chances of all classes too, background first: x_probabilities.nii.gz beside
        x.nii.gz.
    modality
        What the volumes are, where files do not say and the model's plan has rules for several.
    device
        "auto" is CUDA where there is one.
    json
        Print one JSON object: out, labels (the files that were written), failed (reasons by path).
    """
    from medar.segmentation.files import check_output, segment_files
    from medar.segmentation.segmenter import Segmenter
    from medar.segmentation.sliding_window import PredictionSettings

    settings = PredictionSettings.from_options(mirrors, overlap)
    if len(places) < 3:
        given = " ".join(map(str, places)) or "nothing"
        raise MedarError(
            f"medar segment: {given} given; one or more networks, what to segment and where to "
            "write are needed: MODEL... IN OUT"
        )
    *models, volume, out = places
    check_output(volume, out)
    networks = [Segmenter.from_pretrained(model, device) for model in models]
    written: list[Path] = []
    failed: dict[str, str] = {}
    for source, made in segment_files(
        networks,
        volume,
        out,
        settings,
        options=reading.options(),
        modality=modality,
        probabilities=probabilities,
    ):
        if isinstance(made, MedarError):
            failed[source] = str(made)
            note(f"{source}: not segmented: {made}")
            continue
        written.append(made)
        if not json:
            print(f"{made}: the labels of {source}")
    if json:
        print_json({"out": out, "labels": written, "failed": failed})
    return 1 if failed else 0
