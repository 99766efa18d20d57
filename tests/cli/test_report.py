"""`medar report`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medar.files import write_json

Medar = Callable[..., Any]


def test_the_report_is_rewritten(medar: Medar, tmp_path: Path) -> None:
    stage = {"name": "prepare", "status": "failed", "seconds": 2.0, "attempts": 3}
    write_json(tmp_path / "stages" / "prepare.json", stage)
    page = tmp_path / "report.html"
    answer = medar("report", tmp_path)
    assert (answer.code, answer.out) == (0, f"{page}\n")
    assert "The stage prepare failed." in page.read_text()
    write_json(tmp_path / "stages" / "prepare.json", {**stage, "status": "done"})
    answer = json.loads(medar("report", tmp_path, "--json").out)
    assert answer == {"report": str(page), "markdown": str(tmp_path / "report.md")}
    assert "failed" not in page.read_text()


def test_real_volumes_are_embedded_only_on_request(
    medar: Medar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def write(run: Path, *, real_volumes: bool) -> Path:
        asked.append(real_volumes)
        return run

    monkeypatch.setattr("medar.report.run.write_report", write)
    medar("report", tmp_path)
    medar("report", tmp_path, "--real")
    assert asked == [False, True]


def test_a_folder_without_a_run_is_refused(medar: Medar, tmp_path: Path) -> None:
    assert "no run in it" in medar("report", tmp_path).refusal
