"""What a run says while it goes: a line at each evaluation, and what the model writes by then."""

import textwrap

from generation.row import printable
from reports.history import History
from system.process import log


def show(history: History, pace: str, sample: str) -> None:
    log(f"{history.report()}  {pace}")
    if sample:
        log(textwrap.indent(printable(sample), "    ") + "\n")
