"""Stepping through the cases of a folder: their selection, and their pages."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from medar.errors import MedarError
from medar.files import write_json
from medar.view.cases import KEPT, CasePages
from medar.view.files import VolumeFile, select_cases
from medar.view.panels import Panel, make_panels
from medar.view.server import PageServer
from medar.volume import ReadOptions


def facts(pages: CasePages, name: str) -> Any:
    html = pages[name].body.decode()
    found = re.search(r'id="facts">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


@pytest.fixture
def folder(write: Any, label: Any, tmp_path: Path) -> Path:
    """Three volumes, and label maps of the same names elsewhere."""
    for name in ("a", "b", "c"):
        write(f"images/{name}.nii.gz")
        write(f"labels/{name}.nii.gz", label)
    return tmp_path / "images"


def test_each_file_of_a_folder_is_a_case_with_its_label(folder: Path) -> None:
    found = select_cases(folder, [str(folder.with_name("labels"))])
    assert found is not None
    assert [case.title for case in found.cases] == ["a", "b", "c"]
    assert found.cases[1].volumes == (
        VolumeFile(image=folder / "b.nii.gz", label=folder.with_name("labels") / "b.nii.gz"),
    )
    (folder.with_name("labels") / "c.nii.gz").unlink()
    with pytest.raises(MedarError, match=r"c\.nii\.gz: no such label map"):
        select_cases(folder, [str(folder.with_name("labels"))])


def test_a_data_set_names_labels_and_modality(folder: Path) -> None:
    root = folder.parent
    pairs = [
        {"image": f"./images/{name}.nii.gz", "label": f"./labels/{name}.nii.gz"} for name in "abc"
    ]
    described = {"training": pairs, "labels": {"0": "background", "2": "liver", "300": "bone"},
                 "modality": {"0": "CT"}}  # fmt: skip
    write_json(root / "dataset.json", described)
    found = select_cases(root)
    assert found is not None
    assert found.names == {2: "liver", 300: "bone"}
    (first,) = found.cases[0].volumes
    assert first.modality == "CT"
    assert first.label is not None
    assert first.label.resolve() == (root / "labels" / "a.nii.gz").resolve()
    with pytest.raises(MedarError, match="--label"):
        select_cases(root, ["labels"])
    without = select_cases(root, ["none"])
    assert without is not None
    assert without.cases[0].volumes[0].label is None


def test_samples_of_a_run_are_cases_without_their_label_maps(
    pair: tuple[Path, Path], write: Any
) -> None:
    folder = pair[1].parent
    assert select_cases(folder) is None  # a single volume
    write("samples/sample_0001.nii.gz")
    write_json(folder.parent / "recipe.json", {"recipe": "synthesis"})
    for where in (folder, folder.parent):
        found = select_cases(where)
        assert found is not None
        assert [case.title for case in found.cases] == ["sample_0000", "sample_0001"]
        assert found.cases[0].volumes[0].synthetic


def test_other_folders_are_no_cases(tmp_path: Path) -> None:
    (tmp_path / "slice.dcm").touch()
    assert select_cases(tmp_path) is None


def test_a_case_is_read_when_its_page_is_asked_for(folder: Path) -> None:
    read: list[int] = []
    files = sorted(folder.iterdir())

    def make(index: int) -> list[Panel]:
        read.append(index)
        return make_panels([VolumeFile(image=files[index])], ReadOptions())

    pages = CasePages(["a", "<b>", "c"], make)
    assert read == []
    assert facts(pages, "")["index"] == 0
    assert facts(pages, "case-2")["cases"] == ["a", "<b>", "c"]
    assert b"<b>" not in pages["case-2"].body
    (panel,) = facts(pages, "case-2")["panels"]
    assert panel["image"] == "case-2-image-0"
    assert pages["case-2-image-0"].body == make_panels(
        [VolumeFile(image=files[1])], ReadOptions()
    )[0].image  # fmt: skip
    assert pages["page.js"].kind.startswith("text/javascript")
    assert read == [0, 1]


def test_only_some_cases_stay_in_memory() -> None:
    read: list[int] = []

    def make(index: int) -> list[Panel]:
        read.append(index)
        return []

    pages = CasePages([str(k) for k in range(9)], make)
    for k in range(KEPT + 1):
        pages[f"case-{k + 1}"]
    pages[f"case-{KEPT + 1}"]
    assert read == [*range(KEPT + 1)]
    pages["case-1"]
    assert read[-1] == 0


def test_a_damaged_case_has_a_page_that_says_so() -> None:
    def fail(index: int) -> list[Panel]:
        raise MedarError(f"{index}.nii.gz: truncated </script>")

    pages = CasePages(["a", "b"], fail)
    assert facts(pages, "case-2")["error"] == "1.nii.gz: truncated </script>"
    assert facts(pages, "case-2")["panels"] == []


@pytest.mark.parametrize(
    "name",
    ["case-0", "case-4", "case--1", "case-", "case-1/", "case-1-image-9", "case-²", "case-1e1",
     "../x", "image-0", "case-99999999999"],
)  # fmt: skip
def test_nothing_else_is_served(name: str) -> None:
    pages = CasePages(["a", "b", "c"], lambda _: [])
    assert pages.get(name) is None
    with PageServer(pages) as server:
        assert server.find(server.prefix + name) is None
        assert server.find("/" + name) is None
        assert server.find(server.prefix + "case-3") is not None
