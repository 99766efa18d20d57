"""`score_data_set`: every case of a data set ranked by its surprise, and a map for each.

`surprises` gives the surprising cases as problems of the data set, and writes nothing.

    files -> likelihood of each case (kept in OUT, so that an interrupted run continues) -> ranking
                                                                                         -> maps
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medar.data.hashes import HashIndex
from medar.data.manifest import Case, Manifest, Split
from medar.data.preparation import Trace
from medar.data.problems import Problem, problem
from medar.data.reading import merged_reading, read_image, reading_for
from medar.errors import MedarError
from medar.evaluation.surprise.likelihood import (
    Likelihood,
    check_scorable,
    measure,
    surprise_map,
)
from medar.evaluation.surprise.ranking import Score, rank, usual_losses
from medar.files import (
    atomic_path,
    check_writable,
    digest,
    file_digest,
    read_json_object,
    write_json,
)
from medar.parallel import run_parallel
from medar.progress import track
from medar.settings import to_dict
from medar.shared import Shared
from medar.synthesis import Synthesizer
from medar.volume import ReadOptions, write_volume

SCORES_FILE = "scores.json"
MEASURED = "likelihood"
"""Folder of what was measured of each case, for the next run."""

ScoredSplit = Split | Literal["held-out", "all"]
"""Cases to score; "held-out" is every case that is not of the train split."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The result of `score_data_set`."""

    ranking: list[Score]
    """The most surprising case first."""
    failed: dict[str, str]
    """Reasons by case: files that cannot be read or prepared."""
    reference: str
    """What the cases were compared with."""
    images: dict[str, tuple[Path, ...]]
    """Files of each case."""
    maps: dict[str, Path]
    """Map of surprise of each case."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return {
            "reference": self.reference,
            "cases": [
                {
                    **one.to_dict(),
                    "images": [str(path) for path in self.images[one.case]],
                    "map": str(self.maps[one.case]),
                }
                for one in self.ranking
            ],
            "failed": self.failed,
        }


def score_data_set(
    synthesizer: Synthesizer,
    data: Manifest,
    out: str | Path,
    *,
    reference: Manifest | None = None,
    split: ScoredSplit = "all",
    options: ReadOptions | None = None,
    workers: int = 1,
) -> Scores:
    """Rank the cases of a data set by how surprising they are to a generator.

    Cases that the generator was trained on are likelier than others like them, so that all cases,
    and those of the reference, should be new to it, or none of them.

    Args:
        synthesizer: generator and tokenizer.
        data: the data set.
        out: folder for scores.json and maps/CASE.nii.gz; an interrupted run continues.
        reference: cases to compare with; default: for each case all others of `data`.
        split: cases of `data` to score.
        options: reading options that differ from the plan's.
        workers: processes.

    Raises:
        MedarError: the generator was trained on patches; no case is in the split; there are too few
            cases to compare with (`rank`); or OUT cannot be written.
    """
    out = Path(out)
    check_scorable(synthesizer)
    cases = _selected(data, split)
    check_writable(out)
    work = _Work(
        synthesizer=Shared(synthesizer),
        options=options or ReadOptions(),
        folder=out / MEASURED,
    )
    failed: dict[str, str] = {}
    compared = None
    if reference is not None:
        found = dict(_measured(reference, reference.cases, work, workers, "reference"))
        compared = [one for one in found.values() if isinstance(one, Likelihood)]
    measured: dict[str, Likelihood] = {}
    for name, result in _measured(data, cases, work, workers, "score"):
        if isinstance(result, Likelihood):
            measured[name] = result
        else:
            failed[name] = str(result)
    ranking = rank(measured, compared)
    usual = usual_losses(compared or list(measured.values()))
    maps = {}
    schedule = synthesizer.model.schedule
    for name, one in track(measured.items(), total=len(measured), label="maps"):
        maps[name] = out / "maps" / f"{name}.nii.gz"
        volume = surprise_map(one.losses - usual, schedule, one.trace)
        write_volume(
            maps[name], volume, grid="source", description="medar: surprise in nats per site"
        )
    compared_with = "each other"
    if reference is not None:
        compared_with = f"{len(compared or ())} of {reference.root}"
    scores = Scores(
        ranking=ranking,
        failed=failed,
        reference=f"{len(measured)} cases of {data.root}, compared with {compared_with}",
        images={case.id: case.images for case in cases},
        maps=maps,
    )
    write_json(out / SCORES_FILE, {"model": synthesizer.digest, **scores.to_dict()})
    return scores


def surprises(
    synthesizer: Synthesizer,
    data: Manifest,
    *,
    options: ReadOptions | None = None,
    workers: int = 1,
) -> list[Problem]:
    """The surprising cases of a data set, each compared with all others, as warnings.

    Cases that cannot be read are left out: `check` reports them.

    Raises:
        MedarError: the generator was trained on patches, or there are too few cases.
    """
    check_scorable(synthesizer)
    work = _Work(synthesizer=Shared(synthesizer), options=options or ReadOptions(), folder=None)
    measured = {
        name: one
        for name, one in _measured(data, data.cases, work, workers, "likelihood")
        if isinstance(one, Likelihood)
    }
    return [
        problem("surprising", f"{one.reason} (score {one.score:.1f})", case=one.case)
        for one in rank(measured)
        if one.surprising
    ]


def _selected(data: Manifest, split: ScoredSplit) -> tuple[Case, ...]:
    """The cases of a split; those without one are in "all" only."""
    if split == "all":
        return data.cases
    splits = ("val", "test") if split == "held-out" else (split,)
    chosen = tuple(case for case in data if case.split in splits)
    if not chosen:
        raise MedarError(
            f"{data.root}: no case is in the split {split!r}; name the manifest.jsonl of the "
            "prepared data set, which holds the splits, or score all"
        )
    return chosen


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What the cases have in common."""

    synthesizer: Shared[Synthesizer]
    options: ReadOptions
    folder: Path | None
    """Where the likelihood of each case is kept; None keeps none."""


def _measured(
    data: Manifest, cases: Sequence[Case], work: _Work, workers: int, label: str
) -> Iterator[tuple[str, Likelihood | MedarError]]:
    """The likelihood of each case, or why it has none, in the order of the cases."""
    plan = work.synthesizer.model.plan
    reading = reading_for(data, merged_reading(plan.reading, work.options))
    function = partial(_measure_case, work=replace(work, options=reading))
    outcomes = run_parallel(function, cases, workers=workers)
    found: dict[str, Likelihood | MedarError] = {}
    for outcome in track(outcomes, total=len(cases), label=label):
        try:
            found[outcome.item.id] = outcome.result()
        except MedarError as error:
            found[outcome.item.id] = error
    for case in cases:
        yield case.id, found[case.id]


def _measure_case(case: Case, work: _Work) -> Likelihood:
    """The likelihood of a case, from an earlier run if nothing that it depends on has changed."""
    if work.folder is None:
        return _read_and_measure(case, work)
    synthesizer, hashes = work.synthesizer.model, HashIndex()
    key = digest(
        {
            "files": [hashes[path] for path in case.images],
            "model": synthesizer.digest,
            "attributes": case.attributes,
            "modality": case.modality,
            "options": to_dict(work.options),
        }
    )
    about, arrays = work.folder / f"{key}.json", work.folder / f"{key}.npy"
    if (stored := _stored(about, arrays)) is not None:
        return stored
    one = _read_and_measure(case, work)
    with atomic_path(arrays) as temporary, temporary.open("wb") as file:
        np.save(file, one.losses)
    values = {"residual": one.residual, "trace": one.trace.to_dict()}
    write_json(about, {**values, "digest": digest([values, file_digest(arrays)])})
    return one


def _read_and_measure(case: Case, work: _Work) -> Likelihood:
    synthesizer = work.synthesizer.model
    image = read_image(case, work.options)
    image = replace(image, modality=image.modality or synthesizer.plan.sole_modality)
    return measure(synthesizer, image, case)


def _stored(about: Path, arrays: Path) -> Likelihood | None:
    """What an earlier run has measured; None if it has not, or if a file is damaged."""
    try:
        values = read_json_object(about)
        written = values.pop("digest", None)
        if written != digest([values, file_digest(arrays)]):
            return None
    except (MedarError, OSError):
        return None
    return Likelihood(
        losses=np.load(arrays, allow_pickle=False),
        residual=values["residual"],
        trace=Trace.from_dict(values["trace"]),
    )
