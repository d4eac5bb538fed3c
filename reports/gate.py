"""Who may ask a server of this machine, and for what."""

import re
from collections.abc import Awaitable, Callable
from typing import Any

HOME = "127.0.0.1"
PARTS = r"theme\.css|favicon\.ico|(assets|static)/[\w.@/-]+"
CALLS = "queue/join|queue/data|cancel|reset"
PATHS = re.compile(f"/({PARTS}|gradio_api/({CALLS}))?")  # of the playground; there is nothing else
MOST_BYTES = 8_000_000  # of a request: a megabyte of text, however it is spelt
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; img-src 'self' data:; font-src 'self' data:; "
    "frame-ancestors 'none'; form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
App = Callable[..., Awaitable[None]]


def is_from_here(host: str | None, origin: str | None, port: int) -> bool:
    """Whether a request names this server, and comes from its own page or from none."""
    names = {f"{name}:{port}" for name in (HOME, "localhost")}
    return host in names and (origin is None or origin in {f"http://{name}" for name in names})


def guarded(app: App, port: int) -> App:
    """The ASGI application, for requests of its own page alone and of at most MOST_BYTES."""
    from starlette.datastructures import Headers
    from starlette.responses import PlainTextResponse

    def refusal(scope: dict[str, Any]) -> tuple[int, str] | None:
        headers, path = Headers(scope=scope), scope["path"]
        size = headers.get("content-length", "0" if scope["method"] in ("GET", "HEAD") else "")
        if not is_from_here(headers.get("host"), headers.get("origin"), port):
            return 403, "this page is for this machine alone"
        if ".." in path or not PATHS.fullmatch(path):
            return 404, "there is nothing but the page"
        if not size.isdecimal() or int(size) > MOST_BYTES:
            return 413, f"a request has at most {MOST_BYTES:,} bytes"
        return None

    async def answer(scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        refused = refusal(scope) if scope["type"] == "http" else None
        inner = PlainTextResponse(refused[1], refused[0]) if refused else app
        await inner(scope, receive, send)

    return answer
