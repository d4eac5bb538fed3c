"""The report while runs go: a page that renews itself, served to this machine alone."""

from collections.abc import Callable
from contextlib import suppress
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


class LiveReport:
    """The page on runs as they are now; made again only where one of their files has changed."""

    def __init__(self, places: list[str]) -> None:
        self.paths = [runs.path_of(place) for place in places]
        self.places, self.shown, self.content = places, "", ""

    def state(self) -> str:
        """Differs whenever a run has recorded something."""
        found = [path.stat() if path.exists() else None for path in self.paths]
        return " ".join(f"{one.st_mtime_ns}-{one.st_size}" if one else "-" for one in found)

    def page(self) -> str:
        state = self.state()
        if state != self.shown:
            script = WATCH.replace("STATE", state).replace("SECONDS", str(SECONDS))
            self.content = html.page(runs.load_all(self.places), script)
            self.shown = state
        return self.content


class Handler(BaseHTTPRequestHandler):
    """Answers GET of `/` and `/state`, to pages of this server only."""

    report: LiveReport

    def do_GET(self) -> None:
        answers: dict[str, tuple[str, Callable[[], str]]] = {
            "/": ("text/html", self.report.page),
            "/state": ("text/plain", self.report.state),
        }
        port, asked = self.server.server_address[1], self.headers
        if not is_from_here(asked.get("Host"), asked.get("Origin"), port):
            self.answer(HTTPStatus.FORBIDDEN, "this page is for this machine alone")
        elif self.path not in answers:
            self.answer(HTTPStatus.NOT_FOUND, "there is nothing but the report")
        else:
            kind, content = answers[self.path]
            try:
                self.answer(HTTPStatus.OK, content(), kind)
            except (UserError, OSError) as error:  # a new run may be moving the files of another
                self.answer(HTTPStatus.SERVICE_UNAVAILABLE, describe(error))

    def answer(self, status: HTTPStatus, content: str, kind: str = "text/plain") -> None:
        raw = content.encode()
        headers = {**HEADERS, "Content-Type": f"{kind}; charset=utf-8", "Content-Length": len(raw)}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *arguments: object) -> None:
        """A request is no news."""


def server_of(places: list[str]) -> ThreadingHTTPServer:
    """A server of the report on this machine's own address, on a free port."""
    runs.load_all(places)  # what is no run is said at once
    handler = type("LiveHandler", (Handler,), {"report": LiveReport(places)})
    return ThreadingHTTPServer((HOME, 0), handler)


def serve(places: list[str]) -> None:
    """Serves the report until Ctrl-C, which ends it in the ordinary way."""
    with server_of(places) as server:
        log(f"live      http://{HOME}:{server.server_address[1]}/ until Ctrl-C")
        with suppress(KeyboardInterrupt):
            server.serve_forever()
