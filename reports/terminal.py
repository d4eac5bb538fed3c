"""What a run says: a line at each evaluation, what the model writes by then, and how to go on."""

import shlex
import sys
import textwrap
from pathlib import Path

from generation.row import printable
from reports.history import History
from storage.checkpoint import FINAL_NAME
from storage.run_folder import ADAPTER_NAME, COMPARISON_NAME, HISTORY_NAME, PLOT_NAME, REPORT_NAME
from system.process import is_open, log

FILES = {  # what a run leaves for people, in the order of the last table
    FINAL_NAME: "the model of the best evaluation",
    ADAPTER_NAME: "what was learned alone, for programs that have the rest",
    REPORT_NAME: "curves, samples, data and settings, for a browser",
    PLOT_NAME: "losses, perplexity and learning rate",
    COMPARISON_NAME: "which way of sampling writes most like the text",
    HISTORY_NAME: "every number of these, for other programs",
}


def show(history: History, pace: str, sample: str) -> None:
    log(f"{history.report()}  {pace}")
    if sample:
        log(textwrap.indent(printable(sample), "    ") + "\n")


def is_watched() -> bool:
    """Whether a bar is seen as it moves: in a terminal or a notebook, but in no file."""
    streams = (sys.stdout, sys.stderr)
    is_terminal = all(is_open(stream) and stream.isatty() for stream in streams)
    return is_terminal or "ipykernel" in sys.modules


def ending(folder: Path, prompt: str) -> str:
    """The files that a run has left in its folder, and three commands to go on with."""
    rows = [(str(folder / name), FILES[name]) for name in FILES if (folder / name).exists()]
    width = max((len(path) for path, _ in rows), default=0)
    lines = [f"{path:<{width}}  {what}" for path, what in rows]
    is_here = folder == Path()
    model = "" if is_here else f" --checkpoint {shlex.quote(str(folder / FINAL_NAME))}"
    place = "" if is_here else f" {shlex.quote(str(folder))}"
    commands = [
        f"python generate.py{model} --prompt {shlex.quote(prompt or 'Once upon a time')}",
        f"python report.py --table{place}",
        f"python export.py{model} --to gguf model.gguf",
    ]
    margin = "\n" + " " * 10
    return f"files     {margin.join(lines)}\nnext      {margin.join(commands)}"
