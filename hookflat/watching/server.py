"""The page, on the loopback interface alone, of the standard library alone."""

from __future__ import annotations

import importlib.resources
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from hookflat.errors import UserError
from hookflat.recipe.tables import as_json
from hookflat.watching.watched import Watched

_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'"


class Server(ThreadingHTTPServer):
    """Serves one folder on 127.0.0.1; `port` 0 is any free one. Raises UserError where the port is taken."""

    daemon_threads = True

    def __init__(self, watched: Watched, port: int = 0) -> None:
        self.watched = watched
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise UserError(
                f"--port {port}: {error.strerror or error}; choose another, or 0 for any free one"
            ) from error

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away in the middle of an answer is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        return f"http://127.0.0.1:{self.server_port}/"

    @property
    def hosts(self) -> set[str]:
        """What a browser here may call it. Another name that leads here is of a page that wants to read it."""
        return {f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}


class _Handler(BaseHTTPRequestHandler):
    """GET alone; texts of runs leave as JSON, and the page writes them as text."""

    server: Server  # ty: ignore[incompatible-mutable-override]
    server_version, sys_version = "hookflat", ""

    def do_GET(self) -> None:
        """The page, its parts, the facts of the folder, or the curves of a run."""
        if self.headers.get("Host") not in self.server.hosts:
            self._answer(421, b"ask for 127.0.0.1", "text/plain; charset=utf-8")
            return
        asked = urlsplit(self.path)
        if asked.path in _FILES:
            name, kind = _FILES[asked.path]
            self._answer(200, importlib.resources.files("hookflat.watching").joinpath(name).read_bytes(), kind)
            return
        facts = None
        if asked.path == "/facts":
            facts = self.server.watched.facts()
        elif asked.path == "/curves":
            facts = self.server.watched.curves(parse_qs(asked.query).get("run", [""])[0])
        self._answer(200 if facts is not None else 404, as_json(facts or {}).encode(), "application/json")

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", _POLICY + "; form-action 'none'; frame-ancestors 'none'")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not this command's output."""
