"""The server of the page, for this machine only.

Content is in memory before the server starts, except the cases of a folder: they are listed before
it starts, and read when their page is asked for. Every URL contains a random path, so that other
users of the machine cannot find it, unless they see it in the process list while a browser is
started with it. A request must name this machine as its host, which guards against DNS rebinding.
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
        resources: by relative URL, see `medar.view.page.resources` and `medar.view.cases`.
        port: 0 for a free one.

    Raises:
        MedarError: the port is taken or out of range.
    """

    def __init__(self, resources: Mapping[str, Resource], port: int = 0) -> None:
        if not 0 <= port < 2**16:
            raise MedarError(f"--port must be 0 to 65535, got {port}; omit it for a free one")
        secret = secrets.token_urlsafe(16)
        self.resources, self.prefix = resources, f"/{secret}/"
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            raise MedarError(
                f"--port {port}: {error.strerror or error}; omit it for a free one"
            ) from error
        self.url = f"http://{ADDRESS}:{self.server_address[1]}{self.prefix}"
        """URL of the page."""

    def find(self, path: str) -> Resource | None:
        """What a path of a request stands for; None if nothing."""
        if not path.startswith(self.prefix):
            return None
        return self.resources.get(path.removeprefix(self.prefix))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report errors, except a browser that closes the connection during a response."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    server_version = "medar"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        self._respond(body=True)

    def do_HEAD(self) -> None:
        self._respond(body=False)

    def _respond(self, *, body: bool) -> None:
        host = (self.headers.get("Host") or "").rpartition(":")
        resource = None
        if (host[0] or host[2]).lower() not in HOSTS:
            status = HTTPStatus.MISDIRECTED_REQUEST
        else:
            resource = self.server.find(self.path)
            status = HTTPStatus.OK if resource else HTTPStatus.NOT_FOUND
        content = resource.body if resource else f"{status.value} {status.phrase}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", resource.kind if resource else "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Do not log requests to the terminal."""
