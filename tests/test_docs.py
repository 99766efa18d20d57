"""Every command and every Python snippet in README and docs runs, in order, in an empty folder."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medar.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(bash|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def folder(tmp_path: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with configs/; for speed, phantoms are coarse and no process is started."""
    copy = shutil.copy(mlflow_database, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{copy}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.setattr("medar.parallel.default_workers", lambda: 1)
    return tmp_path


def run_command(line: str) -> None:
    words = shlex.split(line, comments=True)
    assert words[0] == "medar", line
    if words[1:3] == ["data", "phantoms"]:
        words += ["--spacing", "20"]
    with pytest.raises(SystemExit) as ended:
        main(words[1:])
    assert ended.value.code == 0, line


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if FENCE.search(p.read_text())], ids=name)
def test_commands_in_documentation_run(page: Path, folder: Path) -> None:
    text = page.read_text()
    if "medar data phantoms" not in text and '"prepared"' in text:
        run_command("medar data phantoms phantoms --n 6")
        run_command("medar data prepare phantoms --out prepared --workers 1")
    for kind, body in FENCE.findall(text):
        if kind == "bash":
            for line in filter(str.strip, body.replace("\\\n", " ").splitlines()):
                run_command(line)
        else:
            exec(compile(body, name(page), "exec"), {"__name__": "__docs__"})


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_have_existing_targets(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{name(page)} links to {target}"


def test_command_line_reference_is_current() -> None:
    made = subprocess.run(
        [sys.executable, ROOT / "docs" / "cli_reference.py"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    written = (ROOT / "docs" / "reference" / "cli.md").read_text()
    assert written == made, "run `make docs`"
