"""A viewer of one series on this machine: a page and its slices, for whoever holds the token in its URL."""

from __future__ import annotations

import hmac
import json
import logging
import secrets
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from archive.errors import ConfigError, VoxbookError, describe
from archive.workspace import Workspace
from flows.slices import Series, Wanted

logger = logging.getLogger("voxbook")

ADDRESS = "127.0.0.1"
HOSTS = ("127.0.0.1", "localhost")
REQUEST_SECONDS = 30


class Server(ThreadingHTTPServer):
    """One series behind one token."""

    daemon_threads = True

    def __init__(self, series: Series, port: int) -> None:
        self.series = series
        self.token = secrets.token_urlsafe(24)
        self.nonce = secrets.token_urlsafe(12)
        super().__init__((ADDRESS, port), Handler)
        self.page = render(series, self.token, self.nonce)

    @property
    def url(self) -> str:
        """Where the page is, token included."""
        return f"http://{ADDRESS}:{self.server_port}/?token={self.token}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is nothing to tell; anything else is named, without what it holds."""
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError | TimeoutError):
            logger.warning("view: %s", describe(error))


class Handler(BaseHTTPRequestHandler):
    """GET / and GET /slice, with the token and from a page of this address only."""

    server: Server
    server_version = "voxbook"
    sys_version = ""
    timeout = REQUEST_SECONDS

    def do_GET(self) -> None:
        """The page, or the values of one slice; 403 without the token or under a foreign Host (DNS rebinding)."""
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        given = query.get("token", "").encode()
        if not self._is_ours() or not hmac.compare_digest(given, self.server.token.encode()):
            self._send(HTTPStatus.FORBIDDEN, "text/plain", b"403: open the URL that voxbook view printed\n")
        elif url.path == "/":
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page)
        elif url.path == "/slice":
            self._slice(query)
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"404\n")

    def _refuse(self) -> None:
        self._send(HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", b"405: GET only\n", {"Allow": "GET"})

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = _refuse

    def _is_ours(self) -> bool:
        name, _, port = self.headers.get("Host", "").rpartition(":")
        return name in HOSTS and port == str(self.server.server_port)

    def _slice(self, query: dict[str, str]) -> None:
        try:
            wanted = Wanted.parse(query, self.server.series)
        except (KeyError, ValueError):
            self._send(HTTPStatus.BAD_REQUEST, "text/plain", b"400: no such slice\n")
            return
        try:
            picture = self.server.series.look(wanted)
        except VoxbookError as error:
            told = json.dumps({"error": error.code, "message": error.message, "hint": error.hint}).encode()
            self._send(HTTPStatus.CONFLICT, "application/json", told)
        except Exception as error:  # a request must not end in a traceback, which may hold a path
            logger.warning("view: %s", describe(error))
            told = json.dumps({"error": "UNEXPECTED", "message": describe(error), "hint": ""}).encode()
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, "application/json", told)
        else:
            about = {
                "X-Shape": ",".join(map(str, picture.values.shape)),
                "X-Type": picture.values.dtype.name,
                "X-Share": f"{picture.share:.4f}",
            }
            body = np.ascontiguousarray(picture.values, picture.values.dtype.newbyteorder("<"))
            self._send(HTTPStatus.OK, "application/octet-stream", body.tobytes(), about)

    def _send(self, status: HTTPStatus, kind: str, body: bytes, more: dict[str, str] | None = None) -> None:
        policy = (
            f"default-src 'none'; img-src data:; connect-src 'self'; script-src 'nonce-{self.server.nonce}'; "
            f"style-src 'nonce-{self.server.nonce}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": policy,
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            **(more or {}),
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: request lines hold the token."""


def make_server(workspace: Workspace | Path | str, series: str, port: int = 0) -> tuple[Server, str]:
    """A server of one series on 127.0.0.1, and its URL; `serve_forever` runs it.

    series: pseudonym, or its beginning. port: 0 takes any free one. Raises StoreError NOT_FOUND, MISSING; ConfigError
    BAD_USAGE where the port is taken.
    """
    home = workspace if isinstance(workspace, Workspace) else Workspace.open(workspace)
    try:
        server = Server(Series(home, series), port)
    except (OSError, OverflowError) as error:
        if isinstance(error, VoxbookError):
            raise
        raise ConfigError("BAD_USAGE", f"port {port} cannot be taken", hint="--port 0 takes any free one") from None
    return server, server.url


def view(workspace: Path, series: str, port: int, browse: bool, told: Any) -> None:
    """Serve until interrupted; `told(url, series)` is called when it answers."""
    server, url = make_server(workspace, series, port)
    threading.Thread(target=server.series.warm, daemon=True).start()
    try:
        told(url, server.series.name)
        if browse:
            import webbrowser

            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        server.serve_forever()
    except KeyboardInterrupt:
        pass  # how a viewer ends
    finally:
        server.server_close()


def render(series: Series, token: str, nonce: str) -> bytes:
    """The page, self-contained."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    # autoescape, and `tojson` for the data: figures and enums only, but whoever adds a field need not know that.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text, style, script = (
        files("flows").joinpath(f"view.{kind}").read_text(encoding="utf-8") for kind in ("html.j2", "css", "js")
    )
    page = environment.from_string(text).render(
        about=series.about(), token=token, nonce=nonce, style=Markup(style), script=Markup(script)
    )
    return page.encode()
