"""`medar data check`, and how every command reports invalid arguments."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Medar = Callable[..., Any]
Write = Callable[..., Path]


def test_a_valid_data_set_exits_with_0(medar: Medar, data: Path) -> None:
    result = medar("data", "check", data, "--deep")
    assert (result.code, result.err) == (0, "")
    assert "4, 4 labelled" in result.out
    assert "0 errors" in result.out


def test_an_error_exits_with_1_and_names_case_and_file(
    medar: Medar, data: Path, write: Write
) -> None:
    write("data/labels/c2.nii.gz", np.ones((8, 10, 5), np.uint8))
    result = medar("data", "check", data, "--json")
    assert (result.code, result.err) == (1, "")
    report = json.loads(result.out)
    assert report["errors"] == 1
    (found,) = [problem for problem in report["problems"] if problem["severity"] == "error"]
    assert (found["code"], found["case"]) == ("shape-mismatch", "c2")
    assert found["path"] == "labels/c2.nii.gz"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chek", "x"], "chek"),
        (["check"], "PATH"),
        (["check", "nowhere"], "nowhere: no such file or folder"),
        (["check", ".", "--workers", "0"], "--workers must be at least 1, got 0"),
        (["check", ".", "--bogus"], "--bogus"),
        (["check", ".", "--no-json"], "--no-json"),
        (["plan", ".", "--out", "x", "--empty-spacing"], "--empty-spacing"),
        (["check", ".", "--modality", "PET"], "PET"),
        (["check", ".", "--attributes", "nowhere.csv"], "nowhere.csv"),
        (["check", ".", "--assume-spacing", "1,1"], "such as 1,1,2.5, got 1,1"),
        (["check", ".", "--nonfinite", "nan"], "nonfinite"),
    ],
)
def test_invalid_arguments_give_one_line(
    medar: Medar, data: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(data)
    assert message in medar("data", *arguments).refusal


@pytest.mark.parametrize("content", [None, b"", b"hello", b"\x1f\x8b\x08"])
def test_a_path_without_a_volume_gives_one_line(
    medar: Medar, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "x"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    assert "no volume found" in medar("data", "check", path).refusal


@pytest.mark.parametrize(
    "line",
    [
        '{"id": "a", "image": "a.nii", "attributes": {"x": ' + "9" * 5000 + "}}",
        "[" * 100_000,
        "[1]",
        '{"id": "a\\ud800", "image": "a.nii"}',
        '{"medar_manifest": 1, "labels": {"--1": "a"}}',
        '{"medar_manifest": 1, "labels": {"\u00b2": "a"}}',
        '{"medar_manifest": 1, "labels": {"99999999999": "a"}}',
    ],
    ids=["digits", "depth", "list", "surrogate", "minus", "superscript", "large"],
)
def test_a_malformed_manifest_gives_one_line(medar: Medar, tmp_path: Path, line: str) -> None:
    file = tmp_path / "cases.jsonl"
    file.write_text(line + "\n", encoding="utf-8")
    assert f"{file}:1: " in medar("data", "check", file).refusal


def test_duplicate_case_ids_name_the_manifest(medar: Medar, tmp_path: Path) -> None:
    file = tmp_path / "cases.jsonl"
    file.write_text('{"id": "a", "image": "a.nii"}\n' * 2)
    assert f"{file}: two cases have the id 'a'" in medar("data", "check", file).refusal


def test_line_breaks_inside_strings_do_not_split_lines(
    medar: Medar, write: Write, tmp_path: Path
) -> None:
    write("a.nii")
    file = tmp_path / "cases.jsonl"
    text = '{"id": "a", "image": "a.nii", "attributes": {"note": "p\u2028q\u0085r"}}\r\n'
    file.write_bytes(text.encode())
    assert medar("data", "check", file).code == 0


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_undecodable_file_names_are_reported(medar: Medar, write: Write, tmp_path: Path) -> None:
    name = write("set/a.nii").with_name("b\udcff.nii")
    write("set/b.nii").rename(name)
    assert (
        "b\\udcff.nii: the name is not valid UTF-8"
        in medar("data", "check", tmp_path / "set").refusal
    )


def test_a_link_to_a_parent_folder_adds_no_case(medar: Medar, data: Path) -> None:
    (data / "images" / "loop").symlink_to(data / "images", target_is_directory=True)
    assert json.loads(medar("data", "check", data, "--json").out)["cases"] == 4


def test_files_of_other_formats_are_counted(medar: Medar, data: Path) -> None:
    (data / "images" / "brain.mgz").write_bytes(b"x")
    result = medar("data", "check", data)
    assert result.code == 0
    assert "1 files of formats that medar does not read" in result.out
    assert "images/brain.mgz" in result.out


def test_dicom_files_beside_other_volumes_are_noticed(medar: Medar, data: Path) -> None:
    (data / "images" / "slice.dcm").write_bytes(b"x")
    assert "DICOM files in images itself" in medar("data", "check", data).out


def test_a_quoted_line_break_stays_in_its_cell(medar: Medar, data: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_bytes(b'\xef\xbb\xbfid,note,age\r\nc0,"a, ""b""\r\nc",50\r\nc1,d,60\r\n')
    out = tmp_path / "out"
    assert medar("data", "prepare", data, "--out", out, "--attributes", table).code == 0
    cases = [json.loads(line) for line in (out / "cases.jsonl").read_text().splitlines()[1:]]
    assert cases[0]["attributes"] == {"note": 'a, "b"\nc', "age": 50}


def test_unusual_file_names_give_one_line(medar: Medar, write: Write) -> None:
    path = write("two\nlines.nii")
    path.write_bytes(b"hello")
    assert "two lines.nii" in medar("data", "show", path).refusal


def test_python_m_medar_runs_the_command_line() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "medar", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip()[0].isdigit()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_cannot_command_the_terminal(medar: Medar, write: Write, tmp_path: Path) -> None:
    name = write("set/a.nii").with_name("b\x1b[31mred\x07.nii")
    write("set/b.nii").rename(name)
    (tmp_path / "set" / "c\x1b]0;title\x07.nii").write_bytes(b"damaged")
    result = medar("data", "check", tmp_path / "set")
    assert result.code == 1
    assert not {"\x1b", "\x07"} & set(result.out + result.err)
    assert "b_[31mred_" in result.out + str(medar("data", "check", tmp_path / "set", "--json").out)
    refusal = medar("data", "check", tmp_path / "no\x1b[31m").refusal
    assert "no\\x1b[31m: no such file" in refusal


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a\\u0000b", "image": "a.nii"}', "case id must be usable as a file name"),
        ('{"id": "a\\u001b[31m", "image": "a.nii"}', "case id must be usable as a file name"),
        ('{"id": "a", "image": "a\\u0000.nii"}', "no file can be named"),
        ('{"id": "a", "image": "a.nii", "label": "\\u0000"}', "no file can be named"),
        ('{"id": "a", "image": "a.nii", "missing_label": "x\\u0000"}', "no file can be named"),
    ],
)
def test_control_characters_in_a_manifest(
    medar: Medar, tmp_path: Path, line: str, message: str
) -> None:
    (tmp_path / "cases.jsonl").write_text(line + "\n")
    assert message in medar("data", "check", tmp_path / "cases.jsonl").refusal
