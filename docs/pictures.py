"""Makes the pictures of README.md: `python docs/pictures.py RUN` trains there and looks at it.

It needs Chromium and `pip install playwright gradio bokeh rich`.
"""

import io
import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import torch
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from rich.console import Console
from rich.text import Text

DOCS = Path(__file__).resolve().parent
TERMINAL = {"width": 118, "height": 100, "record": True, "highlight": False}
PROMPT = "The little dragon"


def said_by(*command: str) -> str:
    """What a command of ours prints, its notes included."""
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, str(DOCS.parent / command[0]), *command[1:]]
    return subprocess.run(command, check=True, **both).stdout


def record(run: Path, *options: str) -> None:
    """Records a training, without its comparison of ways to sample, and a text."""
    terminal = Console(file=io.StringIO(), **TERMINAL)
    training = said_by("train.py", "--output_dir", str(run), *options)
    training = re.sub(r"(?s)(\nsaved[^\n]*\n).*\n(?=done )", r"\1...\n", training)
    # Of each sample one line is enough.
    training = re.sub(r"(?m)(^ {4}\S.*\n)(\n| {4}\S.*\n)+", r"\1", training)
    text = said_by("generate.py", "--checkpoint", str(run), "--prompt", PROMPT, "--seed", "1")
    for command, said in (
        (["train.py", *options], training),
        (["generate.py", "--prompt", PROMPT, "--seed", "1"], text),
    ):
        terminal.print(Text(f"$ {shlex.join(['python', *command])}", style="bold"))
        shown = re.sub(f"({DOCS.parent}|{run})/", "", said).replace(str(run), run.name)
        for line in shown.rstrip().splitlines():
            terminal.print(Text(line), overflow="ellipsis", no_wrap=line.startswith(("  ", "step")))
    svg = terminal.export_svg(title="python train.py")
    svg = re.sub(r"(?s)@font-face \{.*?\}\s*", "", svg)  # nothing is fetched by who looks at it
    (DOCS / "terminal.svg").write_text(svg, encoding="utf-8")


def shoot(page: Page, name: str, height: int) -> None:
    """Puts the page's upper part into a PNG of 64 colours."""
    page.set_viewport_size({"width": 1000, "height": height})
    page.wait_for_timeout(1000)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(64).save(DOCS / name, optimize=True)


def show_playground(page: Page, run: Path) -> None:
    """Lets the run's model write, and asks what else was likely."""
    from reports import playground, shelf

    models = shelf.Shelf([run], {}, precision="float32", device=torch.device("cpu"))
    server, socket = playground.server_of(models)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    try:
        write_in(page, f"http://127.0.0.1:{socket.getsockname()[1]}/")
        shoot(page, "playground.png", 800)
    finally:
        server.should_exit = True
        thread.join()


def write_in(page: Page, address: str) -> None:
    page.goto(address)
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("textbox", name="seed").fill("1")
    page.get_by_label("number input for max new tokens").fill("80")
    page.get_by_label("prompt").fill(PROMPT)
    page.get_by_role("button", name="Write", exact=True).click()
    page.locator("article [title]").nth(9).click()
    page.get_by_role("button", name="Settings").click()  # closed again


def main(run: Path, *options: str) -> None:
    sys.path.insert(0, str(DOCS.parent))
    record(run, *options)
    for name in ("training_losses.png", "sampling_comparison.png"):
        shutil.copy(run / name, DOCS)
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto((run / "report.html").resolve().as_uri())
        page.locator(".bk-Figure").last.wait_for()
        shoot(page, "report.png", 900)
        show_playground(page, run)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
