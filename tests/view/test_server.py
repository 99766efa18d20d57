"""The server and the parts of the page, without a browser."""

import hashlib
import http.client
import re
import socket
import threading
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from medar.errors import MedarError
from medar.view import page
from medar.view.files import select_files
from medar.view.page import resources, self_contained
from medar.view.panels import Panel, make_panels
from medar.view.server import PageServer
from medar.volume import ReadOptions

VENDOR = Path(page.__file__).parent / "vendor" / "niivue"


@pytest.fixture
def panels(pair: tuple[Path, Path]) -> list[Panel]:
    return make_panels(select_files(pair).volumes, ReadOptions())


@pytest.fixture
def server(panels: list[Panel]) -> Iterator[PageServer]:
    with PageServer(resources(panels)) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ask(
    server: PageServer, path: str, *, method: str = "GET", host: str | None = None
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
    connection.request(method, path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def test_the_page_and_its_parts_are_served(server: PageServer, panels: list[Panel]) -> None:
    home = urlsplit(server.url).path
    answer, body = ask(server, home)
    assert answer.status == 200
    html = body.decode()
    for name in re.findall(r'(?:src|href)="([^"]+)"', html):
        if not name.startswith("data:"):
            assert ask(server, home + name)[0].status == 200, name
    assert ask(server, home + "image-0")[1] == panels[0].image
    assert ask(server, home + "label-1")[1] == panels[1].label
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", html)
    answer, body = ask(server, home, method="HEAD")
    assert (answer.status, body) == (200, b"")
    assert int(answer.headers["Content-Length"]) == len(html.encode())


def test_nothing_else_is_served(server: PageServer) -> None:
    home = urlsplit(server.url).path
    inside = ("label-0", "image-2", "../", "../../etc/passwd", "page.py", "?x")
    for path in ("/", home[:-1], "/image-0", "//etc/passwd", *(home + name for name in inside)):
        answer, body = ask(server, path)
        assert answer.status == 404, path
        assert body == b"404 Not Found\n"
    assert ask(server, home, method="POST")[0].status == 501


def test_only_local_host_names_are_accepted(server: PageServer) -> None:
    home, port = urlsplit(server.url).path, server.server_address[1]
    for host in (f"127.0.0.1:{port}", "localhost:8000", "LOCALHOST", "127.0.0.1"):
        assert ask(server, home, host=host)[0].status == 200, host
    for host in ("medar.example", f"127.0.0.1.example:{port}", "", "localhost.example", "0.0.0.0"):
        assert ask(server, home, host=host)[0].status == 421, host


def test_headers_block_external_content(server: PageServer) -> None:
    home = urlsplit(server.url).path
    for path in (home, home + "image-0", "/"):
        headers = ask(server, path)[0].headers
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "Access-Control-Allow-Origin" not in headers


def test_addresses_cannot_be_guessed() -> None:
    with PageServer({}) as server, PageServer({}) as other_server:
        first, second = urlsplit(server.url), urlsplit(other_server.url)
    assert first.hostname == "127.0.0.1"
    assert first.path != second.path
    assert len(first.path) > 20


def test_a_taken_port_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MedarError, match=f"--port {port}"):
            PageServer({}, port)
    with pytest.raises(MedarError, match="must be 0 to 65535, got 70000"):
        PageServer({}, 70000)


def test_the_single_file_runs_only_its_own_scripts(panels: list[Panel]) -> None:
    html = self_contained(panels)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', html)
    assert policy is not None
    assert "connect-src" not in policy[1]
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert len(scripts) == len(page.SCRIPTS)
    for script in scripts:
        digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy[1]
    assert "<script src" not in html


def test_the_single_file_has_a_size_limit(
    panels: list[Panel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "MAX_BYTES", 10)
    with pytest.raises(MedarError, match="must be at most 0 MiB"):
        self_contained(panels)


def test_names_of_files_cannot_end_the_script(panels: list[Panel]) -> None:
    panels[0].facts["title"] = "</script><script>alert(1)</script>"
    assert "<script>alert" not in self_contained(panels)


def test_niivue_matches_the_published_release() -> None:
    text = (VENDOR / "README.md").read_text()
    digest = hashlib.sha256((VENDOR / "niivue.umd.js").read_bytes()).hexdigest()
    assert digest in text
    assert page.NIIVUE in text
    assert "Niivue" in (VENDOR / "LICENSE").read_text()
