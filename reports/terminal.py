"""What a run says while it goes: a line at each evaluation, and what the model writes by then."""

import textwrap

from generation.row import printable
from reports.history import Report
from system.process import log


def show(report: Report) -> None:
    """Prints the latest evaluation, the pace, and the sample below them."""
    log(f"{report.history.report()}  {report.pace}")
    log(textwrap.indent(printable(report.sample), "    ") + "\n")
