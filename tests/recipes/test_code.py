"""The digest of code: words do not change it, code does."""

from pathlib import Path

import pytest

from medar.errors import MedarError
from medar.recipes.code import code_digest

ROOM = '''"""A room."""

SIDE = 3
"""In mm."""


def volume(side: float) -> float:
    """The volume."""
    return side**3  # a cube
'''


def of(tmp_path: Path, text: str, name: str = "cube.py") -> str:
    folder = tmp_path / str(abs(hash((text, name)))) / "room"
    folder.mkdir(parents=True)
    (folder / name).write_text(text)
    return code_digest("room", folder.parent)


def test_words_and_layout_change_nothing(tmp_path: Path) -> None:
    words = ROOM.replace("A room", "The best of rooms").replace("The volume", "In mm3")
    words = words.replace("  # a cube", "").replace('"""In mm."""\n', "")
    assert of(tmp_path, ROOM) == of(tmp_path, words)


@pytest.mark.parametrize("change", [("side**3", "side**2"), ("SIDE = 3", "SIDE = 4")])
def test_code_changes_it(tmp_path: Path, change: tuple[str, str]) -> None:
    assert of(tmp_path, ROOM) != of(tmp_path, ROOM.replace(*change))


def test_names_of_modules_count(tmp_path: Path) -> None:
    assert of(tmp_path, ROOM) != of(tmp_path, ROOM, "ball.py")


def test_single_modules_and_those_that_are_not_there() -> None:
    assert code_digest("errors") != code_digest("files")
    with pytest.raises(MedarError, match="no such module"):
        code_digest("nowhere")
