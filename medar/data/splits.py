"""Splits by subject: reproducible on every machine and stable when cases are added.

Splits that the data set gives, or that were stored, are kept. Other subjects are ordered by a hash
of the seed and their name, and each is assigned to the split that is furthest below its fraction.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from medar.data.manifest import SPLITS, Manifest, Split
from medar.errors import MedarError

FRACTIONS = (0.8, 0.1, 0.1)


def assign_splits(
    manifest: Manifest,
    *,
    fractions: tuple[float, float, float] = FRACTIONS,
    seed: int = 0,
    stored: Manifest | Mapping[str, Split] | None = None,
) -> Manifest:
    """Assign a split to each case; all cases of a subject get the same split.

    With three subjects or more, each split with a fraction above 0 gets at least one. If the data
    set has splits but no val, and nothing is stored, some subjects of train become val.

    Args:
        manifest: the data set; splits that its cases have are kept.
        fractions: of the subjects in train, val and test; they sum to 1.
        seed: of the order in which subjects are assigned.
        stored: an earlier manifest of the data set, or splits by subject, which are kept.

    Raises:
        MedarError: the fractions are invalid, or a stored split contradicts the data set.
    """
    _check_fractions(fractions)
    subjects = list(dict.fromkeys(case.subject for case in manifest))
    given = _by_subject(manifest)
    fixed = given | _stored(given, stored, manifest)
    notes = []
    if stored is None:
        carved = _carve(fixed, fractions, seed)
        if carved:
            notes.append(
                f"no val in the data set: {len(carved)} of {len(fixed)} subjects with a split "
                f"moved from train to val (seed {seed})"
            )
        fixed |= dict.fromkeys(carved, "val")
    new = sum(subject not in fixed for subject in subjects)
    if fixed and new:
        notes.append(f"{new} of {len(subjects)} subjects had no split and were assigned one")
    assigned = _assign(subjects, fixed, fractions, seed)
    cases = tuple(replace(case, split=assigned[case.subject]) for case in manifest)
    return replace(manifest, cases=cases, notes=(*manifest.notes, *notes))


def _assign(
    subjects: list[str],
    fixed: Mapping[str, Split],
    fractions: tuple[float, float, float],
    seed: int,
) -> dict[str, Split]:
    """The split of each subject: its fixed one, else the split furthest below its fraction."""
    assigned = {subject: fixed[subject] for subject in subjects if subject in fixed}
    counts = Counter(assigned.values())
    target = {s: f * len(subjects) for s, f in zip(SPLITS, fractions, strict=True) if f > 0}
    new = in_order((subject for subject in subjects if subject not in fixed), seed)
    for done, subject in enumerate(new):
        empty = [split for split in target if counts[split] == 0]
        # The last subjects go to splits that would otherwise stay empty.
        open_to = empty if empty and len(new) - done <= len(empty) else list(target)
        split = max(open_to, key=lambda s: target[s] - counts[s])
        assigned[subject] = split
        counts[split] += 1
    return assigned


def _carve(
    fixed: Mapping[str, Split], fractions: tuple[float, float, float], seed: int
) -> list[str]:
    """Subjects of train that become val, if the data set has a train split and no val."""
    train = [subject for subject, split in fixed.items() if split == "train"]
    if "val" in fixed.values() or len(train) < 2 or fractions[1] == 0:
        return []
    count = round(len(train) * fractions[1] / (fractions[0] + fractions[1]))
    return in_order(train, seed)[: min(max(1, count), len(train) - 1)]


def _by_subject(manifest: Manifest) -> dict[str, Split]:
    return {case.subject: case.split for case in manifest if case.split is not None}


def _stored(
    given: Mapping[str, Split],
    stored: Manifest | Mapping[str, Split] | None,
    manifest: Manifest,
) -> dict[str, Split]:
    """Stored splits by subject, checked against the data set's own."""
    if stored is None:
        return {}
    kept = _by_subject(stored) if isinstance(stored, Manifest) else dict(stored)
    for subject, split in kept.items():
        own = given.get(subject, split)
        # The data set's train and the stored val agree: val was carved out of train.
        if own != split and (own, split) != ("train", "val"):
            raise MedarError(
                f"{manifest.root}: subject {subject!r} is {split} in the stored splits and {own} "
                "in the data set; correct one, or leave out the stored splits"
            )
    return kept


def in_order(subjects: Iterable[str], seed: int) -> list[str]:
    """Subjects in an order that depends on the seed and on each name alone."""

    def key(subject: str) -> bytes:
        return hashlib.blake2b(f"{seed}:{subject}".encode(), digest_size=16).digest()

    return sorted(subjects, key=key)


def _check_fractions(fractions: tuple[float, float, float]) -> None:
    fine = len(fractions) == 3 and all(math.isfinite(f) and f >= 0 for f in fractions)
    if not fine or abs(sum(fractions) - 1) > 1e-6 or fractions[0] == 0:
        raise MedarError(
            "split fractions must be three numbers (train, val, test) that sum to 1, train above "
            f"0, got {tuple(fractions)}"
        )
