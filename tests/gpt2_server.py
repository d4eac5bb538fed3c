"""A real HTTP server on 127.0.0.1 that serves files well, or misbehaves as its script says."""

import re
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    """One request. The next entry of the server's script answers it, or else `serve`."""

    server: "FileServer"

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers)))
        script = self.server.script
        with suppress(ConnectionError):  # the client may be killed
            (script.popleft() if script else serve)(self)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    @property
    def content(self) -> bytes:
        return self.server.files.get(self.path, b"")

    def start(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def send(self, body: bytes) -> None:
        self.wfile.write(body)
        self.server.num_sent += len(body)


class FileServer(ThreadingHTTPServer):
    """`files` by path, the `requests` seen, and the `script` of answers still to give."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.script: deque[Callable[[Handler], None]] = deque()
        self.etag = '"one"'
        self.num_sent = 0
        self.is_hanging = threading.Event()
        self.is_released = threading.Event()  # ends the answers that hang
        self.url = f"http://127.0.0.1:{self.server_port}/models"

    def __enter__(self) -> "FileServer":
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.is_released.set()
        self.shutdown()
        self.server_close()

    def requested(self, name: str) -> list[dict[str, str]]:
        """The headers of the requests for a file."""
        return [headers for path, headers in self.requests if path.endswith(f"/{name}")]


def _range(handler: Handler) -> int | None:
    """The first byte asked for, or None where the whole file is due."""
    asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    is_same = handler.headers.get("If-Range", handler.server.etag) == handler.server.etag
    return int(asked[1]) if asked and is_same else None


def serve(handler: Handler, until: int | None = None, has_length: bool = True) -> None:
    """A faultless answer, or one whose connection ends at byte `until` of the file."""
    if handler.path not in handler.server.files:
        return handler.start(404, {"Content-Length": "0"})
    start, size = _range(handler), len(handler.content)
    headers = {"ETag": handler.server.etag} if handler.server.etag else {}
    if has_length:
        headers["Content-Length"] = str(size - (start or 0))
    if start is not None:
        headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
    handler.start(200 if start is None else 206, headers)
    return handler.send(handler.content[start or 0 : until])


def cut(until: int, has_length: bool = True) -> Callable[[Handler], None]:
    return lambda handler: serve(handler, until, has_length)


def hang_at(until: int) -> Callable[[Handler], None]:
    """Serves at 50 MB/s up to a byte of the file, then says nothing more."""

    def answer(handler: Handler) -> None:
        start = _range(handler) or 0
        serve(handler, until=start)
        for position in range(start, until, 50_000):
            handler.send(handler.content[position : min(position + 50_000, until)])
            time.sleep(0.001)
        handler.server.is_hanging.set()
        handler.server.is_released.wait(60)

    return answer


def drip(handler: Handler) -> None:
    """One byte every 50 ms."""
    handler.start(200, {"Content-Length": str(len(handler.content)), "ETag": '"one"'})
    for byte in handler.content:
        handler.send(bytes([byte]))
        if handler.server.is_released.wait(0.05):
            return


def reply(status: int, body: bytes = b"", **headers: str) -> Callable[[Handler], None]:
    """A fixed answer; Content_Range="..." is the header Content-Range."""

    def answer(handler: Handler) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        handler.start(status, {"Content-Length": str(len(body)), **named})
        handler.send(body)

    return answer
