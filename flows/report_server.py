"""The reports of a workspace on loopback, so that links in the Prefect UI open them: browsers follow none to a file."""

from __future__ import annotations

import hmac
import os
import re
import secrets
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOKEN = ".token"
PATH = re.compile(r"/([\w-]+)/([\w-]+)/report\.html")
# A report holds its styles, scripts and pictures itself and asks nobody for anything.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'"


def serve_reports(reports: Path, port: int) -> str:
    """Serve report.html of every run from a thread of this process; returns the address up to the run's id.

    It holds a token, kept beside the reports (0600), so that links of earlier nights still open. Where `port` is taken,
    any free one is used.
    """
    token = _token(reports)
    kind = type("Handler", (Handler,), {"reports": reports.resolve(), "token": token})
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), kind)
    except OSError:
        server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="voxbook-reports", daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}/{token}"


class Handler(BaseHTTPRequestHandler):
    """Answers /TOKEN/RUN/report.html, and nothing else."""

    reports: Path
    token: str

    def do_GET(self) -> None:
        """One report; 404 for whatever else, without saying what there is."""
        found = PATH.fullmatch(self.path.split("?")[0])
        local = self.headers.get("Host", "").rsplit(":", 1)[0] in ("127.0.0.1", "localhost")  # no rebound name
        if not found or not local or not hmac.compare_digest(found[1], self.token):
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            page = (self.reports / found[2] / "report.html").read_bytes()
        except OSError:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the address holds the token."""


def _token(reports: Path) -> str:
    reports.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = reports / TOKEN
    draft = reports / f"{TOKEN}.{os.getpid()}"
    if not path.exists():
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(secrets.token_hex(16))
        try:
            os.link(draft, path)  # whoever is first decides
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_text().strip()
