"""Selecting the files to show."""

from pathlib import Path
from typing import Any

import pytest

from medar.errors import MedarError
from medar.files import write_json
from medar.view.files import MAX_PANELS, select_files, titles


def test_a_sample_is_marked_synthetic_and_includes_its_label(pair: tuple[Path, Path]) -> None:
    real, made = pair
    first, second = select_files([real, made]).volumes
    assert (first.synthetic, first.label) == (False, None)
    assert second.synthetic
    assert second.label == made.with_name("sample_0000_label.nii.gz")
    assert select_files([made], ["none"]).volumes[0].label is None


def test_label_maps_of_samples_are_not_shown_as_volumes(pair: tuple[Path, Path]) -> None:
    made = pair[1]
    assert [volume.image for volume in select_files([made.parent]).volumes] == [made]


def test_a_record_of_another_file_is_ignored(pair: tuple[Path, Path]) -> None:
    made = pair[1]
    other = made.with_name("other.nii.gz")
    other.write_bytes(made.read_bytes())
    other.with_name("other.json").write_text('{"EchoTime": 0.1}')
    assert not select_files([other]).volumes[0].synthetic
    other.with_name("other.json").write_text(made.with_name("sample_0000.json").read_text())
    assert not select_files([other]).volumes[0].synthetic


def test_a_damaged_record_is_reported(pair: tuple[Path, Path]) -> None:
    pair[1].with_name("sample_0000.json").write_text("{")
    selection = select_files([pair[1]])
    assert not selection.volumes[0].synthetic
    assert "unknown whether sample_0000.nii.gz is synthetic" in selection.notes[0]


@pytest.mark.parametrize("named", ["", [], ["x"], {}, 3, None, "/"])
def test_a_record_without_a_label_name_adds_no_label(named: Any, pair: tuple[Path, Path]) -> None:
    made = pair[1]
    made.with_name("sample_0000_label.nii.gz").unlink()
    write_json(made.with_name("sample_0000.json"), {"synthetic": True, "label": named})
    for where in (made, made.parent):
        (first,) = select_files([where]).volumes
        assert (first.synthetic, first.label) == (True, None)


def test_folders_without_a_name_are_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for where in (Path(), Path(tmp_path.anchor)):
        assert [volume.synthetic for volume in select_files([where]).volumes] == [False]


def test_labels_are_matched_to_images_by_name(write: Any, label: Any, tmp_path: Path) -> None:
    for name in "ab":
        write(f"images/{name}.nii.gz")
        write(f"labels/{name}.nii.gz", label)
    shown = select_files([tmp_path / "images"], [str(tmp_path / "labels")]).volumes
    assert [volume.label for volume in shown] == [
        tmp_path / f"labels/{name}.nii.gz" for name in "ab"
    ]
    (tmp_path / "labels/b.nii.gz").unlink()
    with pytest.raises(MedarError, match=r"b\.nii\.gz: no such label map"):
        select_files([tmp_path / "images"], [str(tmp_path / "labels")])


def test_a_large_folder_is_truncated_but_too_many_files_are_refused(tmp_path: Path) -> None:
    for number in range(MAX_PANELS + 2):
        (tmp_path / f"{number:02d}.nii.gz").touch()
    selection = select_files([tmp_path])
    assert [volume.image.name for volume in selection.volumes] == [
        f"{k:02d}.nii.gz" for k in range(MAX_PANELS)
    ]
    assert f"the first {MAX_PANELS} of {MAX_PANELS + 2}" in selection.notes[0]
    with pytest.raises(MedarError, match="at most 8"):
        select_files(sorted(tmp_path.iterdir()))


def test_labels_are_counted(pair: tuple[Path, Path]) -> None:
    with pytest.raises(MedarError, match="1 for 2 files"):
        select_files(pair, ["none"])


def test_titles_are_unique() -> None:
    paths = [Path("/a/x/v.nii"), Path("/b/x/v.nii"), Path("/b/w.nii")]
    assert titles(paths) == ["a/x/v.nii", "b/x/v.nii", "w.nii"]
    assert titles([Path("/a/v.nii")] * 2) == ["v.nii"] * 2
    assert titles([Path("/v.nii"), Path("/a/v.nii")]) == ["//v.nii", "a/v.nii"]
