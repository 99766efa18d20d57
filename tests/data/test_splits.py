"""Splits: by subject, in the requested fractions, and stable when cases are added."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medar.data.manifest import Case, Manifest, Split
from medar.data.splits import assign_splits
from medar.errors import MedarError

FRACTIONS = st.tuples(st.integers(1, 8), st.integers(0, 4), st.integers(0, 4)).map(
    lambda parts: tuple(part / sum(parts) for part in parts)
)
SUBJECTS = st.sets(st.text("abcdef", min_size=1, max_size=4), min_size=1, max_size=30)


def manifest(subjects: list[str], given: dict[str, Split] | None = None, each: int = 2) -> Manifest:
    cases = tuple(
        Case(
            id=f"{subject}-{number}",
            images=(Path(f"{subject}-{number}.nii"),),
            subject=subject,
            split=(given or {}).get(subject),
        )
        for subject in subjects
        for number in range(each)
    )
    return Manifest(root=Path("data"), source="folder", cases=cases)


def by_subject(found: Manifest) -> dict[str, str | None]:
    splits: dict[str, str | None] = {}
    for case in found:
        assert splits.setdefault(case.subject, case.split) == case.split
    return splits


@given(subjects=SUBJECTS, fractions=FRACTIONS, seed=st.integers(0, 5))
def test_split_fractions_are_kept(
    subjects: set[str], fractions: tuple[float, float, float], seed: int
) -> None:
    counts = Counter(
        by_subject(
            assign_splits(manifest(sorted(subjects)), fractions=fractions, seed=seed)
        ).values()
    )
    assert sum(counts.values()) == len(subjects)
    for split, fraction in zip(("train", "val", "test"), fractions, strict=True):
        # Splits that would be empty take at most one subject each from a larger one.
        assert abs(counts[split] - fraction * len(subjects)) < 3
        if fraction == 0:
            assert counts[split] == 0
        elif len(subjects) >= 3:
            assert counts[split] > 0


@pytest.mark.parametrize("size", [20, 57, 200])
def test_split_fractions_are_within_one_subject(size: int) -> None:
    subjects = [f"s{number}" for number in range(size)]
    for fractions in ((0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.7, 0.2, 0.1)):
        counts = Counter(
            by_subject(assign_splits(manifest(subjects), fractions=fractions)).values()
        )
        for split, fraction in zip(("train", "val", "test"), fractions, strict=True):
            assert abs(counts[split] - fraction * size) <= 1


@given(subjects=SUBJECTS, order=st.randoms(use_true_random=False), more=SUBJECTS)
def test_additional_cases_move_no_existing_case(
    subjects: set[str], order: object, more: set[str]
) -> None:
    before = assign_splits(manifest(sorted(subjects)))
    everyone = sorted(subjects | more)
    order.shuffle(everyone)  # type: ignore[attr-defined]
    after = by_subject(assign_splits(manifest(everyone), stored=before))
    assert {subject: after[subject] for subject in subjects} == by_subject(before)


@given(subjects=SUBJECTS, order=st.randoms(use_true_random=False))
def test_the_order_of_cases_does_not_matter(subjects: set[str], order: object) -> None:
    shuffled = sorted(subjects)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    expected = by_subject(assign_splits(manifest(sorted(subjects))))
    assert by_subject(assign_splits(manifest(shuffled))) == expected


def test_splits_are_the_same_on_every_machine() -> None:
    found = by_subject(assign_splits(manifest([f"s{n}" for n in range(10)]), seed=0))
    assert [subject for subject, split in found.items() if split != "train"] == ["s0", "s2"]
    assert by_subject(assign_splits(manifest([f"s{n}" for n in range(10)]), seed=1)) != found


def test_existing_splits_are_kept() -> None:
    fixed: dict[str, Split] = {"a": "test", "b": "val", "c": "train"}
    found = by_subject(assign_splits(manifest(["a", "b", "c", "d"], fixed)))
    assert found | fixed == found
    assert found["d"] == "train"


def test_validation_cases_are_taken_from_train_once() -> None:
    subjects = [f"s{n}" for n in range(20)]
    fixed: dict[str, Split] = {s: "test" if n < 2 else "train" for n, s in enumerate(subjects)}
    first = assign_splits(manifest(subjects, fixed))
    assert Counter(by_subject(first).values()) == {"train": 16, "val": 2, "test": 2}
    assert "2 of 20 subjects" in first.notes[-1]
    again = assign_splits(manifest(subjects, fixed), stored=first, seed=7)
    assert by_subject(again) == by_subject(first)


def test_no_validation_cases_without_a_fraction() -> None:
    fixed: dict[str, Split] = {"a": "train", "b": "train", "c": "test"}
    found = assign_splits(manifest(["a", "b", "c"], fixed), fractions=(0.8, 0.0, 0.2))
    assert by_subject(found) == fixed
    assert found.notes == ()


def test_a_contradiction_is_refused() -> None:
    with pytest.raises(MedarError, match="'a' is train in the stored splits and test"):
        assign_splits(manifest(["a"], {"a": "test"}), stored={"a": "train"})


@pytest.mark.parametrize("bad", [(0.8, 0.1), (0.8, 0.1, 0.2), (1.1, -0.1, 0.0), (0.0, 0.5, 0.5)])
def test_invalid_fractions_are_refused(bad: tuple[float, float, float]) -> None:
    with pytest.raises(MedarError, match="sum to 1"):
        assign_splits(manifest(["a"]), fractions=bad)
