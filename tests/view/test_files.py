"""Which files are shown."""

from pathlib import Path
from typing import Any

import pytest

from medar.errors import MedarError
from medar.files import write_json
from medar.view.files import MOST, choose, titles


def test_a_sample_is_synthetic_and_brings_its_label(pair: tuple[Path, Path]) -> None:
    real, made = pair
    first, second = choose([real, made]).shown
    assert (first.synthetic, first.label) == (False, None)
    assert second.synthetic
    assert second.label == made.with_name("sample_0000_label.nii.gz")
    assert choose([made], ["none"]).shown[0].label is None


def test_a_folder_of_samples_shows_no_label_as_a_volume(pair: tuple[Path, Path]) -> None:
    made = pair[1]
    assert [one.image for one in choose([made.parent]).shown] == [made]


def test_a_record_of_another_file_marks_nothing(pair: tuple[Path, Path]) -> None:
    made = pair[1]
    other = made.with_name("other.nii.gz")
    other.write_bytes(made.read_bytes())
    other.with_name("other.json").write_text('{"EchoTime": 0.1}')
    assert not choose([other]).shown[0].synthetic
    other.with_name("other.json").write_text(made.with_name("sample_0000.json").read_text())
    assert not choose([other]).shown[0].synthetic


def test_a_broken_record_is_told(pair: tuple[Path, Path]) -> None:
    pair[1].with_name("sample_0000.json").write_text("{")
    chosen = choose([pair[1]])
    assert not chosen.shown[0].synthetic
    assert "whether sample_0000.nii.gz is synthetic is not known" in chosen.notes[0]


@pytest.mark.parametrize("named", ["", [], ["x"], {}, 3, None, "/"])
def test_a_record_without_the_name_of_a_label_brings_none(
    named: Any, pair: tuple[Path, Path]
) -> None:
    made = pair[1]
    made.with_name("sample_0000_label.nii.gz").unlink()
    write_json(made.with_name("sample_0000.json"), {"synthetic": True, "label": named})
    for where in (made, made.parent):
        (one,) = choose([where]).shown
        assert (one.synthetic, one.label) == (True, None)


def test_folders_without_a_name_are_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for where in (Path(), Path(tmp_path.anchor)):
        assert [one.synthetic for one in choose([where]).shown] == [False]


def test_labels_of_a_folder_have_their_images_names(write: Any, label: Any, tmp_path: Path) -> None:
    for name in "ab":
        write(f"images/{name}.nii.gz")
        write(f"labels/{name}.nii.gz", label)
    shown = choose([tmp_path / "images"], [str(tmp_path / "labels")]).shown
    assert [one.label for one in shown] == [tmp_path / f"labels/{name}.nii.gz" for name in "ab"]
    (tmp_path / "labels/b.nii.gz").unlink()
    with pytest.raises(MedarError, match=r"b\.nii\.gz: no such label map"):
        choose([tmp_path / "images"], [str(tmp_path / "labels")])


def test_a_folder_is_cut_and_told_but_files_are_refused(tmp_path: Path) -> None:
    for number in range(MOST + 2):
        (tmp_path / f"{number:02d}.nii.gz").touch()
    chosen = choose([tmp_path])
    assert [one.image.name for one in chosen.shown] == [f"{k:02d}.nii.gz" for k in range(MOST)]
    assert f"the first {MOST} of {MOST + 2}" in chosen.notes[0]
    with pytest.raises(MedarError, match="at most 8"):
        choose(sorted(tmp_path.iterdir()))


def test_labels_are_counted(pair: tuple[Path, Path]) -> None:
    with pytest.raises(MedarError, match="1 for 2 files"):
        choose(pair, ["none"])


def test_titles_tell_files_apart() -> None:
    paths = [Path("/a/x/v.nii"), Path("/b/x/v.nii"), Path("/b/w.nii")]
    assert titles(paths) == ["a/x/v.nii", "b/x/v.nii", "w.nii"]
    assert titles([Path("/a/v.nii")] * 2) == ["v.nii"] * 2
    assert titles([Path("/v.nii"), Path("/a/v.nii")]) == ["//v.nii", "a/v.nii"]
