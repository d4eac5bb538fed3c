"""Requests to a server of ours, with any headers and as they are written."""

import http.client


def ask(
    port: int, path: str = "/", method: str = "GET", body: bytes | str | None = None, **headers: str
) -> tuple[http.client.HTTPResponse, str]:
    """The answer's head, and its text."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    content = answer.read().decode()
    connection.close()
    return answer, content
