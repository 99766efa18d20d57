"""`medar score`: damaged and unusual cases of a data set first."""

from pathlib import Path
from typing import Literal

from medar.cli.options import THIS_MACHINE, Cluster, DataSet, Reading, worker_count
from medar.cli.output import check_folder, print_json, print_table

READING, DATASET = Reading(), DataSet()


def score(
    model: Path,
    data: Path,
    /,
    *,
    out: Path,
    reference: Path | None = None,
    split: Literal["train", "val", "test", "held-out", "all"] = "all",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    json: bool = False,
    workers: int | None = None,
    cluster: Cluster = THIS_MACHINE,
    dataset: DataSet = DATASET,
    reading: Reading = READING,
) -> int:
    """Rank the cases of a data set by how surprising they are to a generator.

    Writes OUT/report.html with the most surprising cases, OUT/scores.json, and OUT/maps/CASE.nii.gz
    with the surprise of each voxel on the grid of the case's file. A case with a score of 4 or more
    is worth a look: it may be mirrored, cropped, mislabelled, damaged, or of another kind than the
    training data. All cases should be new to the generator, those of REFERENCE too. The same
    command continues an interrupted run. Exit code 1 if cases could not be read; they are listed.

    Parameters
    ----------
    model
        Folder of a generator, of its run or of a recipe, or a name of `medar models`.
    data
        Folder, dataset.json, JSONL manifest or single volume.
    out
        Folder to write to.
    reference
        Data set of usual cases to compare with, at least 8; default: the other cases of DATA.
    split
        Cases to score; "held-out": all but those of the train split.
    device
        "auto": CUDA if available.
    json
        Print one JSON object: the content of scores.json and the report's path.
    workers
        Processes; default: one.
    """
    from medar.evaluation.surprise.files import score_data_set
    from medar.report.surprise import write_surprise_report
    from medar.synthesis import Synthesizer

    check_folder(out)
    count = 1 if workers is None else worker_count(workers, cluster)
    synthesizer = Synthesizer.from_pretrained(model, device)
    manifest = dataset.read(data)
    usual = None if reference is None else dataset.read(reference)
    with cluster.use(data, reference, model, out=out):
        scores = score_data_set(
            synthesizer,
            manifest,
            out,
            reference=usual,
            split=split,
            options=reading.options(),
            workers=count,
        )
    page = write_surprise_report(scores, out, synthesizer.plan, reading.options(), dataset.modality)
    if json:
        print_json({**scores.to_dict(), "report": page})
        return 1 if scores.failed else 0
    shown = [one for one in scores.ranking if one.surprising] or scores.ranking[:5]
    print_table(
        ("case", "score", "because of"),
        ((one.case, f"{one.score:.1f}", one.reason) for one in shown),
    )
    for case, reason in scores.failed.items():
        print(f"{case}: not scored: {reason}")
    far = sum(one.surprising for one in scores.ranking)
    print(f"{page}: {far} of {len(scores.ranking)} cases are surprising")
    return 1 if scores.failed else 0
