"""The table of DICOM kinds in the documentation is what medar does."""

from pathlib import Path

import pytest
from dicom_kinds import KINDS, table, with_medar

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "dicom.md"


@pytest.mark.slow
def test_the_table_in_the_documentation() -> None:
    found = dict(line.split(" | ", 1) for line in table({"medar": with_medar})[2:])
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    stated = {kind: medar for kind, medar, _ in (line.split(" | ", 2) for line in lines)}
    assert {kind: cell.removesuffix(" |") for kind, cell in found.items()} == stated
    assert len(stated) == len(KINDS) == 33
    assert not [cell for cell in stated.values() if "**" in cell]
    assert [kind for kind, cell in stated.items() if cell == "right"] == [
        f"| {kind.name}" for kind in KINDS if kind.geometry is not None
    ]
