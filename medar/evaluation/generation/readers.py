"""A reading test: people say of each volume on a sheet whether it is real, and are scored.

The toss of a coin decides for each place on the sheet whether it shows a real or a synthetic
volume. A reader who cannot tell them apart is then right with probability 1/2 in each place,
whatever the reader knows or assumes about their numbers, so that the number of right answers is
binomial: the interval is Clopper and Pearson's (Biometrika 26, 1934), the p value exact.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medar.errors import MedarError, one_line
from medar.files import read_text

KINDS = ("real", "synthetic")
MAX_PLACES = 32
"""On a sheet."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A place on the sheet and what it shows."""

    number: int
    """From 1."""
    truth: str
    """"real" or "synthetic"."""
    volume: str
    """Its name."""


def draw_places(real: Sequence[str], synthetic: Sequence[str], seed: int) -> list[Place]:
    """Choose what a sheet shows; there are as many places as the smaller set has volumes.

    Args:
        real: names of real volumes.
        synthetic: names of synthetic ones.
        seed: of the coins and of the order.
    """
    count = min(len(real), len(synthetic), MAX_PLACES)
    random = np.random.default_rng(seed)
    names = [iter([one[k] for k in random.permutation(len(one))]) for one in (real, synthetic)]
    coins = random.integers(2, size=count)
    return [
        Place(number=number, truth=KINDS[coin], volume=next(names[coin]))
        for number, coin in enumerate(coins, 1)
    ]


@dataclass(frozen=True, kw_only=True)
class ReaderScore:
    """The answers of one reader, compared with the key."""

    reader: str
    """The file of answers."""
    answers: int
    correct: int
    accuracy: float
    interval: tuple[float, float]
    """95 %, exact."""
    p: float
    """Two-sided exact binomial test of an accuracy of 1/2."""
    real: int
    real_called_synthetic: int
    synthetic: int
    synthetic_called_real: int


def score_reader(answers: str | Path, key: str | Path) -> ReaderScore:
    """Compare a reader's answers with the key of the sheet.

    Args:
        answers: CSV with the columns `number` and `answer`, "real" or "synthetic".
        key: CSV with the columns `number` and `truth`.

    Raises:
        MedarError: a file cannot be read, a column is missing, a number is not on the sheet, occurs
            twice or has no answer, or an answer is another word.
    """
    from scipy.stats import binomtest

    truth, answered = _read(key, "truth"), _read(answers, "answer")
    strange = next((number for number in answered if number not in truth), None)
    if strange is not None:
        raise MedarError(f"{answers}: number {strange} is not in {key}; is it of another sheet?")
    missing = [number for number in truth if number not in answered]
    if missing:
        raise MedarError(
            f"{answers}: no answer for number {missing[0]}; each number of the sheet needs one"
        )
    count = len(truth)
    correct = sum(truth[number] == answered[number] for number in truth)
    test: Any = binomtest(correct, count, 0.5)
    interval = test.proportion_ci(0.95, method="exact")
    totals = {kind: sum(one == kind for one in truth.values()) for kind in KINDS}
    wrong = {
        kind: sum(one == kind != answered[number] for number, one in truth.items())
        for kind in KINDS
    }
    return ReaderScore(
        reader=str(answers),
        answers=count,
        correct=correct,
        accuracy=correct / count,
        interval=(float(interval.low), float(interval.high)),
        p=float(test.pvalue),
        real=totals["real"],
        real_called_synthetic=wrong["real"],
        synthetic=totals["synthetic"],
        synthetic_called_real=wrong["synthetic"],
    )


def _read(path: str | Path, column: str) -> dict[str, str]:
    """The column of a table by number."""
    try:
        text = read_text(path)
        delimiter = max(",;\t", key=text.partition("\n")[0].count)  # spreadsheets differ
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise MedarError(f"{path}: cannot be read ({one_line(error)})") from error
    found: dict[str, str] = {}
    for row in rows:
        number, value = ((row.get(name) or "").strip() for name in ("number", column))
        if not number or value.lower() not in KINDS:
            raise MedarError(
                f"{path}: number {number or '?'} has the {column} {value!r}; each row needs a "
                f"number and one of {', '.join(KINDS)} in the column {column!r}"
            )
        if number in found:
            raise MedarError(f"{path}: number {number} occurs twice; answer each once")
        found[number] = value.lower()
    if not found:
        raise MedarError(f"{path}: no rows; needs the columns number and {column}")
    return found
