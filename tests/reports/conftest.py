"""What the tests of pages share: a real Chromium, and a proxy that refuses and counts."""

import os
import shutil
import socket
import threading
from collections.abc import Iterator

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
NOWHERE = "http://127.0.0.1:9/"
QUIET = (  # without what Chromium itself asks its makers for
    "--disable-features=AutofillServerCommunication,OptimizationHints,NetworkTimeServiceQuerying",
    f"--component-updater=url-source={NOWHERE}",
    f"--gaia-url={NOWHERE}",
    f"--google-apis-url={NOWHERE}",
)
LOOKS = {"light": 1200, "dark": 360}  # wide and light, narrow and dark


@pytest.fixture(scope="module")
def proxy() -> Iterator[tuple[int, list[bytes]]]:
    """The port of a proxy that refuses all, and what it was asked for."""
    asked = []

    def refuse() -> None:
        while True:
            with server.accept()[0] as caller:
                request = caller.recv(4096)
            if request == b"end":
                return
            asked.append(request)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=refuse)
        thread.start()
        yield server.getsockname()[1], asked
        with socket.create_connection(server.getsockname()) as end:
            end.sendall(b"end")
        thread.join()


@pytest.fixture(scope="module")
def browser(proxy):
    if not CHROMIUM:
        pytest.skip("no Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox"] if getattr(os, "geteuid", int)() == 0 else []
        options += [*QUIET, f"--proxy-server=http://127.0.0.1:{proxy[0]}"]
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=options)


@pytest.fixture(params=LOOKS)
def window(browser, proxy, request):
    """An empty page; afterwards it must not have complained, nor asked another machine."""
    size = {"width": LOOKS[request.param], "height": 800}
    context = browser.new_context(color_scheme=request.param, viewport=size)
    page, complaints = context.new_page(), []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: said.type != "error" or complaints.append(said.text))
    page.on("dialog", lambda dialog: complaints.append("a script of a text ran"))
    yield page
    context.close()
    assert (complaints, proxy[1]) == ([], [])


@pytest.fixture
def violations():
    """What axe finds wrong with a page: rule and help."""
    from axe_playwright_python.sync_playwright import Axe

    def found(page) -> dict[str, str]:
        return {one["id"]: one["help"] for one in Axe().run(page).response["violations"]}

    return found
