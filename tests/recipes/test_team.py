"""What the first process tells the others, and how they leave with it."""

from typing import Any

import pytest

from medar.errors import MedarError
from medar.recipes.team import Team
from medar.training import distributed


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the first process said, which is what the others hear."""
    said: list[Any] = []

    def all_gather_object(value: Any) -> list[Any]:
        if value is not None:
            said.append(value)
        return [said[-1]]

    monkeypatch.setattr(distributed, "all_gather_object", all_gather_object)
    return said


def test_all_get_what_the_first_one_did(words: list[Any]) -> None:
    assert Team(first=True).tell(lambda: 3) == 3
    assert Team(first=False).tell(lambda: 4) == 3


@pytest.mark.parametrize(
    ("error", "code"), [(MedarError("x"), 2), (ValueError("x"), 1), (KeyboardInterrupt(), 130)]
)
def test_the_others_leave_with_the_first(words: list[Any], error: BaseException, code: int) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        Team(first=True).tell(fail)
    with pytest.raises(SystemExit) as left:
        Team(first=False).tell(fail)
    assert left.value.code == code


def test_an_error_is_not_hidden_by_others_that_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_gather_object(_: Any) -> list[Any]:
        raise RuntimeError("connection closed by peer")

    monkeypatch.setattr(distributed, "all_gather_object", all_gather_object)

    def fail() -> None:
        raise MedarError("mine")

    with pytest.raises(MedarError, match="mine"):
        Team(first=True).tell(fail)
