"""The table of samples: links, commands and CSV, with names that try to be something else."""

import csv
import io
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from medar.data.manifest import Case, Manifest
from medar.files import read_json, write_json
from medar.report.blocks import Cell, Download, Link, Table
from medar.report.folder import RunFolder
from medar.report.render import to_html, to_markdown
from medar.report.run import make_report
from medar.report.sections.samples_table import samples_table, view_command
from medar.report.spreadsheet import to_csv
from medar.volume import Volume, write_nifti


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, whose case "one" has a file with an awkward name."""
    copy = Path(shutil.copytree(finished, tmp_path / "small"))
    image = tmp_path / "data" / 'it\'s "one" $(x) #1?.nii.gz'
    image.parent.mkdir()
    image.touch()
    path = copy / "prepared" / "manifest.jsonl"
    cases = Manifest.load(path).cases
    first = Case(id="one", images=(image,), modality="CT", split="train")
    Manifest(root=image.parent, source="MSD", cases=(first, *cases[1:])).save(path)
    return copy


def blocks(run: Path) -> tuple[Table, Download]:
    _, table, download = samples_table(RunFolder(run))
    assert isinstance(table, Table)
    assert isinstance(download, Download)
    return table, download


def test_each_sample_has_its_files_seed_and_nearest_cases(run: Path) -> None:
    table, _ = blocks(run)
    assert table.sortable
    first, _, last = table.rows
    link = Link("sample_0000", "samples/sample_0000.nii.gz")
    near = Link("one", '../data/it\'s "one" $(x) #1?.nii.gz')
    assert list(first[:6]) == [
        Cell(links=[link]),
        Cell(links=[Link("JSON", "samples/sample_0000.json")]),
        Cell("7", 7),
        Cell(links=[near]),
        Cell("3.00", 3.0),
        Cell(links=[near]),
    ]
    assert isinstance(last[0], Cell)
    assert last[0].links[0].text == "sample_0002 (suspected copy)"
    # The file of this case does not exist.
    assert last[5] == "<script>alert(1)</script>|*x*"


def test_the_command_opens_the_sample_beside_its_nearest_cases(run: Path) -> None:
    table, _ = blocks(run)
    cell = table.rows[0][-1]
    assert isinstance(cell, Cell)
    here = run.absolute()
    assert shlex.split(cell.command) == [
        "medar", "view", str(here / "samples/sample_0000.nii.gz"),
        str(here.parent / "data/it's \"one\" $(x) #1?.nii.gz"), "--modality", "CT",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["a\x1b[201~b", "a\nb", "a\u202eb"])
def test_names_that_act_on_a_terminal_are_not_copied(name: str) -> None:
    assert view_command(Path("/x") / name, modality=None) == ""


def test_links_lead_only_to_files(run: Path) -> None:
    report = make_report(RunFolder(run))
    page, markdown = to_html(report), to_markdown(report)
    for text in (page, markdown):
        assert "../data/it%27s%20%22one%22%20%24%28x%29%20%231%3F.nii.gz" in text
    assert 'href="samples/sample_0000.nii.gz">sample_0000</a>' in page
    assert 'data-value="100.0"' in page
    assert "<script>alert" not in page + markdown


def test_without_its_evaluation_the_table_has_files_and_seeds(run: Path) -> None:
    shutil.rmtree(run / "evaluation")
    table, download = blocks(run)
    assert list(table.headings) == ["sample", "files", "seed"]
    assert "distance" not in download.text


def test_distances_of_another_number_of_samples_are_not_shown(run: Path) -> None:
    (run / "samples" / "sample_0002.nii.gz").unlink()
    assert len(blocks(run)[0].headings) == 3


def test_the_csv_file_has_all_samples_and_conditions(run: Path) -> None:
    path = run / "samples" / "sample_0001.json"
    write_json(path, {**read_json(path), "attributes": {"site": "=1+1", "age": -3}})
    rows = list(csv.DictReader(io.StringIO(blocks(run)[1].text)))
    assert [row["sample"] for row in rows] == [f"sample_000{k}" for k in range(3)]
    assert rows[0]["condition_sex"] == "F"
    assert rows[1]["condition_site"] == "'=1+1"
    assert rows[1]["condition_age"] == "-3"
    assert rows[2]["nearest_case_voxels"] == "<script>alert(1)</script>|*x*"
    assert (rows[2]["distance_voxels"], rows[2]["suspected_copy"]) == ("0.125", "True")
    assert rows[0]["volume"] == "samples/sample_0000.nii.gz"


def test_a_label_map_is_linked(run: Path) -> None:
    whole = Volume(array=np.ones((1, 6, 5, 7), np.uint8), affine=np.eye(4))
    write_nifti(run / "samples" / "sample_0000_label.nii.gz", whole)
    table, download = blocks(run)
    assert len(table.rows) == 3
    cell = table.rows[0][1]
    assert isinstance(cell, Cell)
    assert cell.links[0] == Link("label map", "samples/sample_0000_label.nii.gz")
    assert "samples/sample_0000_label.nii.gz" in download.text


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "\n=1"])
def test_no_text_becomes_a_formula(text: str) -> None:
    made = list(csv.reader(io.StringIO(to_csv([{text: text, "number": -1.5, "none": None}]))))
    assert made[0][0] == made[1][0] == "'" + text.replace("\r", "\n")
    assert made[1][1:] == ["-1.5", ""]
