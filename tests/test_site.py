"""The documentation as a site: every page and public name has its place; nothing is loaded."""

import functools
import http.server
import importlib.util
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import medar

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def leaves(nav: Any) -> Iterator[str]:
    """The pages of a navigation, in order."""
    for item in nav if isinstance(nav, list) else [nav]:
        if isinstance(item, str):
            yield item
        else:
            yield from leaves(list(item.values()) if isinstance(item, dict) else item)


def test_the_navigation_has_every_page_once() -> None:
    files = [*DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")]
    pages = [path.relative_to(DOCS).with_suffix(".md").as_posix() for path in files]
    assert sorted(leaves(CONFIG["nav"])) == sorted(pages)


def test_every_public_name_is_on_one_page_of_the_python_interface() -> None:
    found = [
        name
        for page in (DOCS / "api").glob("*.md")
        for name in re.findall(r"^::: medar\.(?:[\w.]+\.)?(\w+)$", page.read_text(), re.MULTILINE)
    ]
    assert sorted(found) == sorted(set(medar.__all__) - {"__version__"})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site that MEDAR_SITE names, else one built here; broken links fail the build."""
    if built := os.environ.get("MEDAR_SITE"):
        return Path(built)
    if any(importlib.util.find_spec(name) is None for name in ("material", "mkdocstrings")):
        pytest.skip("mkdocs is not installed (make docs, or pip install 'medar[docs]')")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", out]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server of files that logs nothing."""

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def served(site: Path) -> Iterator[str]:
    """The address of the site on a local file server."""
    handler = functools.partial(Quiet, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_search_works_from_a_server_and_from_disk(chromium: Any, site: Path, served: str) -> None:
    browser = chromium.page
    for start in (served, site.as_uri()):
        browser.goto(f"{start}/reference/plan.html")
        browser.locator("input.md-search__input").click()
        browser.keyboard.type("PreparedDataset")
        found = browser.locator(".md-search-result__item a.md-search-result__link")
        found.first.wait_for(timeout=60_000)
        addresses = [link.get_attribute("href") for link in found.all()]
        assert any(f"{start}/api/data.html" in address for address in addresses), addresses
    assert chromium.errors == []
    assert chromium.outside == []


@pytest.mark.slow
def test_pages_fit_phones_and_follow_the_colour_scheme(chromium: Any, site: Path) -> None:
    browser = chromium.page
    browser.set_viewport_size({"width": 360, "height": 800})
    for name in ("benchmarks", "api/data", "gallery", "source/docs/whole_way.py", "index"):
        browser.goto(f"{site.as_uri()}/{name}.html")
        assert browser.evaluate("document.documentElement.scrollWidth") <= 360, name
        if name in ("gallery", "index"):  # pictures open in full
            opened = browser.locator(".md-content a:has(> img)").evaluate_all(
                "all => all.map(one => one.href === one.firstChild.src)"
            )
            assert opened
            assert all(opened)
    colours = set()
    for scheme in ("light", "dark"):
        browser.emulate_media(color_scheme=scheme)
        browser.wait_for_timeout(500)  # the theme's script changes colours with a transition
        colours.add(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(colours) == 2
    assert chromium.errors == []
    assert chromium.outside == []
