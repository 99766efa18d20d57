"""The server of a page: this machine alone, the page's own parts alone.

What is served was put into memory before; a request reads no file. All addresses lie under a
random path, so that other users of the machine find nothing, unless they see the address in the
list of processes while a browser is started with it; and a request must name this machine as its
host, so that a page from elsewhere whose name was turned to point here (DNS rebinding) finds
nothing either.
"""

import secrets
import sys
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from medar.errors import MedarError
from medar.view.page import SERVED, Resource

ADDRESS = "127.0.0.1"
HOSTS = (ADDRESS, "localhost")

HEADERS = {
    "Content-Security-Policy": SERVED,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class PageServer(ThreadingHTTPServer):
    """Serves resources under a secret path.

    Args:
        resources: by address relative to the page, see `medar.view.page.resources`.
        port: 0 for a free one.

    Raises:
        MedarError: the port is taken, or is none.
    """

    def __init__(self, resources: Mapping[str, Resource], port: int = 0) -> None:
        if not 0 <= port < 2**16:
            raise MedarError(f"--port {port}: 0 to 65535 are ports; leave it out for a free one")
        secret = secrets.token_urlsafe(16)
        self.resources = {f"/{secret}/{name}": one for name, one in resources.items()}
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            raise MedarError(
                f"--port {port}: {error.strerror or error}; leave it out for a free one"
            ) from error
        self.url = f"http://{ADDRESS}:{self.server_address[1]}/{secret}/"
        """Where the page is."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves in the middle of an answer is no error; anything else is told."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    server_version = "medar"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        host = (self.headers.get("Host") or "").rpartition(":")
        found = self.server.resources.get(self.path)
        if (host[0] or host[2]).lower() not in HOSTS:
            status, found = HTTPStatus.MISDIRECTED_REQUEST, None
        else:
            status = HTTPStatus.OK if found else HTTPStatus.NOT_FOUND
        content = found.body if found else f"{status.value} {status.phrase}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", found.kind if found else "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is the user's."""
