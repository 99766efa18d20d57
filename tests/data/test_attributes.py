"""Joining tables: matching rows to cases, and columns to fields and attributes."""

from dataclasses import replace
from pathlib import Path

import pytest

from medar.data.attributes import join_attributes
from medar.data.manifest import Case, Manifest
from medar.data.sources import read_manifest
from medar.errors import MedarError


def manifest(root: Path, *ids: str, subjects: dict[str, str] | None = None) -> Manifest:
    named = subjects or {}
    cases = tuple(
        Case(id=name, images=(root / f"{name}.nii",), subject=named.get(name, "")) for name in ids
    )
    return Manifest(
        root=root, source="folder", cases=cases, labels={1: "spinal_cord", 2: "Left Lung"}
    )


def test_columns_become_fields_and_attributes(tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_text(
        "ID,split,structures,age,weight,site,code\n"
        "pt_1,validation,SpinalCord left_lung,61,70.5,A,007\n"
        "pt_2,Training,,n/a,80,B,012\n"
        "pt_9,test,SpinalCord,1,1,C,1\n"
    )
    joined = join_attributes(manifest(tmp_path, "train_pt_1", "pt_2", "pt_12"))
    first, second, other = joined.cases
    assert (first.split, first.annotated) == ("val", (1, 2))
    assert first.attributes == {"age": 61, "weight": 70.5, "site": "A", "code": "007"}
    assert (second.split, second.annotated) == ("train", ())
    assert second.attributes == {"weight": 80.0, "site": "B", "code": "012"}
    assert (other.split, other.annotated, other.attributes) == (None, None, {})
    assert joined.notes == (
        "attributes from index.csv: 2 of 3 cases joined, 1 rows without a case",
    )


def test_no_table_changes_nothing(tmp_path: Path) -> None:
    before = manifest(tmp_path, "a")
    assert join_attributes(before) is before


def test_participants_join_all_cases_of_a_subject(tmp_path: Path) -> None:
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-01\t30\n02\t40\n")
    subjects = {"x": "sub-01", "y": "sub-01", "z": "sub-02"}
    joined = join_attributes(manifest(tmp_path, "x", "y", "z", subjects=subjects))
    assert [case.attributes for case in joined] == [{"age": 30}, {"age": 30}, {"age": 40}]


def test_subject_and_modality_columns(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("id;subject;modality\na;7;T1w\nb;7;PET\n")
    joined = join_attributes(manifest(tmp_path, "a", "b"), table)
    assert [case.subject for case in joined] == ["7", "7"]
    assert [case.modality for case in joined] == ["MR", None]
    assert joined.cases[1].attributes == {"modality": "PET"}


def test_values_that_are_no_labels_become_an_attribute(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text('id,structures\na,"spinal cord, heart"\n')
    joined = join_attributes(manifest(tmp_path, "a"), table)
    assert joined.cases[0].annotated is None
    assert joined.cases[0].attributes == {"structures": "spinal cord, heart"}
    assert "'heart' is not a label name" in joined.notes[-1]


def test_annotated_values_that_are_no_labels_stay_text(tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_text("id,annotated\na,liver heart\nb,liver\n")
    joined = join_attributes(manifest(tmp_path, "a", "b"))
    assert [case.annotated for case in joined] == [None, None]
    assert joined["a"].attributes == {"annotated": "liver heart"}
    joined.save(tmp_path / "kept.jsonl")
    assert Manifest.load(tmp_path / "kept.jsonl").cases == joined.cases


def test_labels_by_value_and_separator(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text('id,annotated\na,"Left Lung; spinal cord"\nb,2\nc,n/a\n')
    joined = join_attributes(manifest(tmp_path, "a", "b", "c"), table)
    assert [case.annotated for case in joined] == [(1, 2), (2,), None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,age\n1,3\n", "matches the cases 'a_1' and 'b_1'"),
        ("id,age\na_1,3\na_1,4\n", "two rows"),
        ("id,split\na_1,maybe\n", "got 'maybe'"),
        ("id,age\nq,3\n", "no row matches"),
        ("name,age\na_1,3\n", "no id column"),
        ("", "no id column"),
        ("id,age,AGE\na_1,3,4\n", "two columns named 'age'"),
        ("id,age\na_1,3,4\n", "a row has 3 cells for 2 columns"),
        ('id,age\na_1,"3\n', "not a readable table"),
        ("id,subject,split\na_1,s,train\nb_1,s,test\n", "it must be in one"),
        ("id,set\na_1,train\nb_1,test\n", "the column 'set' holds splits, .*name it split"),
        ("id,Phase\na_1,TRAIN\nb_1,dev\n", "the column 'Phase' holds splits"),
        ("a_1,train\nb_1,val\nc_1,test\n", "the column 'train' holds splits.*first line"),
        ("PK\x03\x04", "a spreadsheet; save its table as CSV"),
    ],
)
def test_an_invalid_table_gives_one_line(tmp_path: Path, text: str, message: str) -> None:
    table = tmp_path / "t.csv"
    table.write_text(text)
    with pytest.raises(MedarError, match=message) as caught:
        join_attributes(manifest(tmp_path, "a_1", "b_1"), table)
    assert str(table) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("requested", [True, False])
@pytest.mark.parametrize(
    ("cases", "ids"),
    [
        (("001", "002"), ("1", "2")),
        (("scan_001", "scan_002"), ("1", "2")),
        (("scan-0", "scan-1"), ("scan_0", "scan_1")),
        (("Scan0", "Scan1"), ("scan_0", "scan 1")),
        (("a1", "a2"), ("a1.nii.gz", "images/a2.nii.gz")),
        (("7", "8"), ("7.0", "8.0")),
        (("s_01_T1", "s_02_T1"), ("s_1_T1", "s_2_T1")),
        (("b\u00e9_1", "b\u00e9_2"), ("be\u0301_1", "be\u0301_2")),
    ],
)
@pytest.mark.parametrize(
    ("column", "value"), [("split", "test"), ("subject", "x"), ("structures", "1")]
)
def test_ids_that_differ_only_in_spelling_lose_no_split(
    tmp_path: Path, cases: tuple[str, ...], ids: tuple[str, ...], column: str, value: str,
    requested: bool,
) -> None:  # fmt: skip
    table = tmp_path / "index.csv"
    table.write_text(f"id,{column}\n{ids[0]},{value}\n{ids[1]},{value}\n")
    match = rf"2 rows match no case .* such as id '{ids[0]}' and the case '{cases[0]}'; correct"
    with pytest.raises(MedarError, match=match) as caught:
        join_attributes(manifest(tmp_path, *cases), table if requested else None)
    assert f"its column '{column}' would be lost" in str(caught.value)


def test_one_row_that_differs_in_spelling_is_enough(tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_text("id,split\na_1,train\nb_02,test\n")
    with pytest.raises(MedarError, match=r"1 rows match no case .*'b_02' and the case 'b_2'"):
        join_attributes(manifest(tmp_path, "a_1", "b_2"))
    (tmp_path / "index.csv").write_text("id,age\na_1,3\nb_02,4\n")
    with pytest.warns(UserWarning, match=r"1 rows match no case .*'b_02' and the case 'b_2'"):
        joined = join_attributes(manifest(tmp_path, "a_1", "b_2"))
    assert [case.attributes for case in joined] == [{"age": 3}, {}]


def test_subjects_that_differ_only_in_spelling(tmp_path: Path) -> None:
    (tmp_path / "participants.tsv").write_text("participant_id\tsplit\n1\ttest\n")
    with pytest.raises(MedarError, match="participant_id '1' and the case 'x'"):
        join_attributes(manifest(tmp_path, "x", subjects={"x": "sub-001"}))


def test_splits_of_other_cases_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_text("id,split\nq,test\nr,train\n")
    with pytest.raises(MedarError, match=r"no row matches a case; its first id is 'q'.*'split'"):
        join_attributes(manifest(tmp_path, "a", "b"))
    (tmp_path / "index.csv").write_text("name,split\na,test\nb,train\n")
    with pytest.raises(MedarError, match=r"no id column .* its column 'split' would be lost"):
        join_attributes(manifest(tmp_path, "a", "b"))
    (tmp_path / "index.csv").write_text("id,split,age\nq,n/a,3\n")
    with pytest.warns(UserWarning, match="no row matches a case"):
        join_attributes(manifest(tmp_path, "a", "b"))


def test_words_of_splits_that_are_none(tmp_path: Path) -> None:
    """A column of one split says nothing, nor one of a data set that states its splits."""
    table = tmp_path / "t.csv"
    table.write_text("id,set\na,train\nb,train\n")
    assert join_attributes(manifest(tmp_path, "a", "b"), table).cases[0].attributes == {
        "set": "train"
    }
    table.write_text("id,set\na,train\nb,test\n")
    stated = manifest(tmp_path, "a", "b")
    stated = stated.with_cases(tuple(replace(case, split="val") for case in stated))
    assert [case.split for case in join_attributes(stated, table)] == ["val", "val"]


def test_numbers_beyond_floats_stay_text(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    for number in ("9" * 400, "1e999"):
        table.write_text(f"id,age\na,{number}\nb,5\n")
        joined = join_attributes(manifest(tmp_path, "a", "b"), table)
        assert [case.attributes["age"] for case in joined] == [number, "5"]


def test_tables_that_are_not_read_are_noted(tmp_path: Path) -> None:
    for name in ("a.nii", "splits.csv", "clinical.xlsx", "attributes.csv", ".hidden.csv", "x.txt"):
        (tmp_path / name).write_text("id,age\na,5\n")
    notes = read_manifest(tmp_path).notes
    assert "clinical.xlsx, splits.csv: not read; --attributes names a table of the cases" in notes
    (tmp_path / "splits.csv").unlink()
    (tmp_path / "clinical.xlsx").unlink()
    assert not any("not read" in note for note in read_manifest(tmp_path).notes)


def test_rows_of_cases_that_are_elsewhere_are_fine(tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_text("id,split\na_1,train\na_2,test\na_3,test\n")
    joined = join_attributes(manifest(tmp_path, "a_1", "a_2"))
    assert [case.split for case in joined] == ["train", "test"]


def test_an_unrelated_table_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_text("name,colour\nx,red\n")
    joined = join_attributes(manifest(tmp_path, "a"))
    assert joined.cases == manifest(tmp_path, "a").cases
    assert "index.csv is not used" in joined.notes[0]


def test_head_and_neck_table(shared_data: Path) -> None:
    from medar.data.sources import read_manifest

    found = read_manifest(shared_data / "headneck_ct")
    assert {s: len(found.select(s)) for s in ("train", "val", "test")} == {
        "train": 170,
        "val": 33,
        "test": 23,
    }
    assert found["train_pt_1"].annotated == (1, 2, 3, 4, 7, 8, 9, 10)
    assert "226 of 226 cases joined, 60 rows without a case" in found.notes[0]
