"""The notebook runs as it stands, and volumes, plans and reports show themselves in one."""

import base64
import importlib.util
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medar.data.plan import IntensityRule, Plan
from medar.data.problems import Report, problem
from medar.evaluation.segmentation.report import ModelReport, SegmentationReport
from medar.notebook import html_table, png
from medar.tokenizer.codebooks.base import CODEBOOKS
from medar.volume import Volume

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "notebooks" / "first-steps.ipynb"


def runner() -> Any:
    """The module docs/run_notebook.py."""
    spec = importlib.util.spec_from_file_location("run_notebook", ROOT / "docs" / "run_notebook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kinds(notebook: dict[str, Any]) -> list[list[list[str]]]:
    """The kinds of output of each cell."""
    return [
        [sorted(output.get("data", {"stream": ""})) for output in cell.get("outputs", [])]
        for cell in notebook["cells"]
    ]


@pytest.mark.slow
def test_the_notebook_runs_and_its_codebook_loads_in_a_new_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(CODEBOOKS, "_registered", dict(CODEBOOKS._registered))
    stored = json.loads(NOTEBOOK.read_text())
    done = runner().execute(stored, tmp_path)
    monkeypatch.delitem(sys.modules, "my_codebooks")
    assert kinds(done) == kinds(stored), "run `python docs/run_notebook.py` on the notebook"
    shown = json.dumps(done)
    assert shown.count("data:image/png") == 9  # three volumes of three planes
    last = [output for cell in done["cells"] for output in cell.get("outputs", [])][-1]
    assert "".join(last["text"]) == "64 codes\n"  # printed by the new process


def pictures(html: str) -> list[np.ndarray]:
    """The pictures of a page, decoded by matplotlib."""
    from matplotlib.image import imread

    data = re.findall('data:image/png;base64,([^"]+)', html)
    return [imread(io.BytesIO(base64.b64decode(one)), format="png") for one in data]


def test_a_volume_shows_three_planes_as_a_radiologist_sees_them() -> None:
    array = np.zeros((5, 7, 9), np.float32)
    array[4, 3, 4] = array[2, 6, 4] = array[2, 3, 8] = 1000  # right, anterior and superior ends
    volume = Volume.from_array(array, np.diag([2, 1, 1, 1]))
    html = volume._repr_html_()
    sagittal, coronal, axial = pictures(html)
    assert [one.shape for one in (sagittal, coronal, axial)] == [(9, 7), (9, 5), (7, 5)]
    assert np.argwhere(sagittal > 0.5).tolist() == [[0, 3], [4, 6]]  # superior up, anterior right
    assert np.argwhere(coronal > 0.5).tolist() == [[0, 2], [4, 0]]  # the patient's right is left
    assert np.argwhere(axial > 0.5).tolist() == [[0, 2], [3, 0]]
    sizes = [tuple(map(int, one)) for one in re.findall(r"width:(\d+)px;height:(\d+)px", html)]
    assert sizes == [(126, 162), (180, 162), (180, 126)]  # 10x7x9 mm at 18 pixels per mm
    assert repr(volume) in html


def test_labels_have_colours_and_values_that_are_not_finite_are_shown() -> None:
    labels = np.zeros((4, 4, 4), np.int16)
    labels[:2], labels[2:] = 0, 9
    axial = pictures(Volume.from_array(labels, np.eye(4))._repr_html_())[2]
    assert axial[:, 2:].max() == 0  # label 0, on the patient's left, is black
    assert len({tuple(pixel) for pixel in axial[:, :2].reshape(-1, 3)}) == 1
    assert axial[:, :2].max() > 0.5
    array = np.full((3, 3, 3), np.nan, np.float32)
    array[1, 1, 1] = np.inf
    assert pictures(Volume.from_array(array, np.eye(4))._repr_html_())[0][1, 1] == 1.0


def test_large_volumes_make_small_pages() -> None:
    noise = np.random.default_rng(0).normal(size=(800, 10, 800)).astype(np.float32)
    html = Volume.from_array(noise, np.eye(4))._repr_html_()
    assert max(max(one.shape) for one in pictures(html)) <= 360
    assert len(html) < 400_000


def test_pictures_are_read_back_equal() -> None:
    from matplotlib.image import imread

    pixels = np.random.default_rng(0).integers(0, 256, size=(5, 3, 3), dtype=np.uint8)
    for one in (pixels, pixels[..., 0]):
        assert np.array_equal(np.rint(imread(io.BytesIO(png(one)), format="png") * 255), one)


def test_tables_escape_text_and_shorten_it() -> None:
    html = html_table(
        "<b>", [("<i>", 0.123456, None), ("x" * 500, [1, 2.5], {"a": 1})], notes="<u>"
    )
    assert not re.search("<[biu]>(?!&lt;)", html.replace("<b>&lt;b&gt;</b>", ""))
    assert "0.1235" in html
    assert "<td" in html
    assert ">-<" in html
    assert "x" * 200 not in html


def test_plans_and_reports_show_their_values() -> None:
    plan = Plan(
        spacing=(1.0, 1.0, 2.0), mode="volume", size=(6, 4, 6), downsampling=(2, 2, 2),
        intensity={"CT": IntensityRule(kind="window", low=-1000.0, high=600.0)},
    )  # fmt: skip
    html = plan._repr_html_()
    assert "6, 4, 6" in html
    assert "3x2x3 sites" in html

    problems = tuple(problem("unreadable", f"<{n}>", case="one") for n in range(12))
    report = Report(data="d", source="MSD", deep=False, cases=1, labelled=0, subjects=1,
                    splits={}, problems=problems)  # fmt: skip
    html = report._repr_html_()
    assert "1 case, 12 errors, 0 warnings" in html
    assert "&lt;9&gt;" in html
    assert "&lt;10&gt;" not in html
    assert "and 2 more" in html

    model = ModelReport(
        name="first", dice_mean=0.875, dice_interval=(0.8, 0.9), hd95_mean=None,
        hd95_interval=None, nsd_mean=None, nsd_interval=None, labels={}, calibration=None, cases=[],
    )  # fmt: skip
    html = SegmentationReport(
        cases=2, subjects=2, split="val", tolerance=1.0, models=[model], comparisons=[],
        notes=["few"], protocol={},
    )._repr_html_()  # fmt: skip
    assert "0.875" in html
    assert "0.8, 0.9" in html
    assert "few" in html
