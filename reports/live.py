"""The report while runs go: a page that renews itself, served to this machine alone."""

from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from reports import html, runs
from reports.gate import HOME, is_from_here
from system.errors import UserError
from system.process import describe, log

SECONDS = 5  # between two looks at whether there is news
WATCH = """
setInterval(async () => {
  const answer = await fetch("/state").catch(() => null)
  if (answer && answer.ok && !document.hidden && await answer.text() != "STATE") location.reload()
}, SECONDS * 1000)
"""
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "script-src 'unsafe-inline' 'unsafe-eval'; connect-src 'self'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def state_of(places: Sequence[str]) -> str:
    """Differs whenever one of the runs has recorded something."""
    paths = map(runs.path_of, places)
    found = [path.stat() if path.exists() else None for path in paths]
    return " ".join(f"{one.st_mtime_ns}-{one.st_size}" if one else "-" for one in found)


@lru_cache(1)
def page_of(places: Sequence[str], state: str) -> str:
    """The page on runs in that state; made again only where it is another one."""
    script = WATCH.replace("STATE", state).replace("SECONDS", str(SECONDS))
    return html.page(runs.load_all(places), script)


class Handler(BaseHTTPRequestHandler):
    """Answers GET of `/` and `/state`, to pages of this server only."""

    places: tuple[str, ...]

    def handle(self) -> None:
        with suppress(ConnectionError):  # a browser that has left in the middle is no news
            super().handle()

    def do_GET(self) -> None:
        status, content, kind = self.found()
        raw = content.encode()
        headers = {**HEADERS, "Content-Type": f"{kind}; charset=utf-8", "Content-Length": len(raw)}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(raw)

    def found(self) -> tuple[HTTPStatus, str, str]:
        """What is asked for: a status, a text, and of which kind that is."""
        port, asked = self.server.server_address[1], self.headers
        if not is_from_here(asked.get("Host"), asked.get("Origin"), port):
            return HTTPStatus.FORBIDDEN, "this page is for this machine alone", "text/plain"
        if self.path not in ("/", "/state"):
            return HTTPStatus.NOT_FOUND, "there is nothing but the report", "text/plain"
        try:
            state = state_of(self.places)
            if self.path == "/state":
                return HTTPStatus.OK, state, "text/plain"
            return HTTPStatus.OK, page_of(self.places, state), "text/html"
        except (UserError, OSError) as error:  # a new run may be moving the files of another
            return HTTPStatus.SERVICE_UNAVAILABLE, describe(error), "text/plain"

    def log_message(self, *arguments: object) -> None:
        """A request is no news."""


def server_of(places: list[str]) -> ThreadingHTTPServer:
    """A server of the report on this machine's own address, on a free port."""
    runs.load_all(places)  # what is no run is said at once
    handler = type("LiveHandler", (Handler,), {"places": tuple(places)})
    return ThreadingHTTPServer((HOME, 0), handler)


def serve(places: list[str]) -> None:
    """Serves the report until Ctrl-C, which ends it in the ordinary way."""
    with server_of(places) as server:
        log(f"live      http://{HOME}:{server.server_address[1]}/ until Ctrl-C")
        with suppress(KeyboardInterrupt):
            server.serve_forever()
