"""The wheel: its files, and the README as a package index shows it."""

import re
import runpy
import subprocess
import sys
import zipfile
from collections.abc import Callable
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytest.importorskip("setuptools")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built outside the repository, without an isolated environment."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", folder,
         "build", "--build-base", folder / "build",
         "bdist_wheel", "--bdist-dir", folder / "bdist", "--dist-dir", folder],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_the_wheel_holds_every_file(wheel: zipfile.ZipFile) -> None:
    """The files of the package, and configs/ as medar/configs."""
    expected = {path.relative_to(ROOT) for path in (ROOT / "medar").rglob("*") if path.is_file()}
    expected |= {"medar" / path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml")}
    expected = {path for path in expected if path.suffix != ".pyc"}
    assert {Path(name) for name in wheel.namelist() if ".dist-info/" not in name} == expected


def test_the_description_has_no_pictures_and_no_relative_links(wheel: zipfile.ZipFile) -> None:
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = message_from_bytes(wheel.read(name))
    text = metadata.get_payload()
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert isinstance(text, str)
    assert text.startswith("# medar")
    assert not re.findall(r"!\[|<img|\]\((?!https?:|mailto:)", text)


@pytest.fixture
def index_page(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str | None], str]:
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    page: Callable[[str, str | None], str] = runpy.run_path(str(ROOT / "setup.py"))["index_page"]
    return page


README = """# medar

![Samples](docs/images/samples.png)

*Samples, not selected
(MR).*

See [the `docs`](docs/index.md) and [PyTorch](https://pytorch.org).
"""


def test_links_become_text_where_there_is_no_repository(
    index_page: Callable[[str, str | None], str],
) -> None:
    expected = "# medar\n\nSee the `docs` and [PyTorch](https://pytorch.org).\n"
    assert index_page(README, None) == expected


def test_links_become_absolute_below_the_repository(
    index_page: Callable[[str, str | None], str],
) -> None:
    link = "[the `docs`](https://example.org/medar/blob/main/docs/index.md)"
    assert f"See {link} and [PyTorch]" in index_page(README, "https://example.org/medar")
