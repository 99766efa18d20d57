"""`medar evaluate readers`, and the Turing test of `medar evaluate generation`."""

from pathlib import Path
from typing import TYPE_CHECKING

from medar.cli.output import decimal, interval, print_json, print_table
from medar.errors import MedarError

if TYPE_CHECKING:
    from medar.evaluation.generation.readers import ReaderScore
    from medar.evaluation.generation.turing import TuringReport


def readers(*answers: Path, key: Path, json: bool = False) -> int:
    """Score what human readers took for real on the sheet of `medar evaluate generation --turing`.

    Parameters
    ----------
    answers
        Completed forms readers/answers.csv, one per reader: columns number and answer, "real" or
        "synthetic".
    key
        readers_key.csv of the same sheet.
    json
        Print one JSON object: scores, one per reader (docs/reference/evaluation.md).
    """
    from medar.evaluation.generation.readers import score_reader
    from medar.settings import to_dict

    if not answers:
        raise MedarError("ANSWERS is missing: medar evaluate readers ANSWERS.csv --key KEY.csv")
    scores = [score_reader(one, key) for one in answers]
    if json:
        print_json({"scores": [to_dict(one) for one in scores]})
    else:
        _print_readers(scores)
    return 0


def print_turing(report: "TuringReport") -> None:
    """Print the areas under the ROC curve, and the notes."""
    print_table(
        ("Turing test of", "volumes each", "AUC", "95 %"),
        (
            (name, count, decimal(area, ".3f"), interval(ends, ".3f"))
            for name, count, area, ends in (
                ("synthetic and real", report.volumes, report.auc, report.interval),
                ("two halves of the real", report.floor_volumes, report.floor,
                 report.floor_interval),
            )
        ),
    )  # fmt: skip
    for line in report.notes:
        print(f"note: {line}")


def _print_readers(scores: "list[ReaderScore]") -> None:
    print_table(
        ("reader", "correct", "accuracy", "95 %", "p", "real called synthetic",
         "synthetic called real"),
        (
            (
                one.reader,
                f"{one.correct} of {one.answers}",
                f"{one.accuracy:.3f}",
                interval(one.interval, ".3f"),
                f"{one.p:.2g}",
                f"{one.real_called_synthetic} of {one.real}",
                f"{one.synthetic_called_real} of {one.synthetic}",
            )
            for one in scores
        ),
    )  # fmt: skip
    print("an accuracy of 0.5 is chance; p: exact binomial test of it")
