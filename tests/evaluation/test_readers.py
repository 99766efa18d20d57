"""The reading test: what a sheet shows, and the score of the answers."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from medar.errors import MedarError
from medar.evaluation.generation.readers import KINDS, MAX_PLACES, draw_places, score_reader


def test_a_coin_decides_what_each_place_shows() -> None:
    real, made = [f"case {k}" for k in range(40)], [f"seed {k}" for k in range(50)]
    sheets = [draw_places(real, made, seed) for seed in range(50)]
    assert sheets[0] == draw_places(real, made, 0) != sheets[1]
    for places in sheets:
        assert [place.number for place in places] == list(range(1, MAX_PLACES + 1))
        assert len({place.volume for place in places}) == MAX_PLACES
        assert all(
            place.volume in {"real": real, "synthetic": made}[place.truth] for place in places
        )
    counts = [sum(place.truth == "real" for place in places) for places in sheets]
    assert len(set(counts)) > 3  # the number of real ones gives nothing away
    assert sum(counts) / len(counts) == pytest.approx(MAX_PLACES / 2, abs=2)
    assert len(draw_places(real[:3], made, 0)) == 3


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key.csv"
    truth = [KINDS[k % 2] for k in range(10)]
    path.write_text("number,truth,volume\n" + "".join(f"{k},{t},v\n" for k, t in enumerate(truth)))
    return path


def form(path: Path, answers: Sequence[str], separator: str = ",") -> Path:
    lines = [f"{k}{separator}{answer}" for k, answer in enumerate(answers)]
    path.write_text("\n".join([f"number{separator}answer", *lines]) + "\n", encoding="utf-8-sig")
    return path


def test_answers_are_scored(key: Path, tmp_path: Path) -> None:
    right = score_reader(form(tmp_path / "a.csv", ["Real", " synthetic"] * 5, ";"), key)
    assert (right.answers, right.correct, right.accuracy) == (10, 10, 1.0)
    assert right.interval == (pytest.approx(0.025**0.1), 1.0)  # Clopper and Pearson, in closed form
    assert right.p == pytest.approx(2 / 2**10)
    blind = score_reader(form(tmp_path / "b.csv", ["real"] * 10), key)
    assert (blind.correct, blind.p) == (5, 1.0)
    assert (blind.real, blind.real_called_synthetic) == (5, 0)
    assert (blind.synthetic, blind.synthetic_called_real) == (5, 5)
    assert blind.interval[0] < 0.5 < blind.interval[1]


def test_incomplete_answers_are_refused(key: Path, tmp_path: Path) -> None:
    whole = ["real"] * 10
    for text, message in (
        (None, "cannot be read"),
        ("", "no rows"),
        (["real"] * 9, "no answer for number 9"),
        ([*whole, "real"], "number 10 is not in"),
        (["", *whole[1:]], "number 0 has the answer ''"),
        (["fake", *whole[1:]], "one of real, synthetic"),
        ("number,guess\n0,real\n", "in the column 'answer'"),
        ("number,answer\n0,real\n0,real\n", "number 0 occurs twice"),
    ):
        path = tmp_path / "form.csv"
        path.unlink(missing_ok=True)
        if isinstance(text, str):
            path.write_text(text)
        elif text is not None:
            form(path, text)
        with pytest.raises(MedarError, match=message) as caught:
            score_reader(path, key)
        assert "form.csv" in str(caught.value)
        assert "\n" not in str(caught.value)
