"""A report on runs: `python report.py`, or `python report.py runs/first runs/second`."""

from collections.abc import Sequence

from system.command_line import Parser
from system.process import log, note, run_command


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(prog="report.py", description="Shows what runs have recorded.")
    parser.add_argument(
        "runs", metavar="RUN", nargs="*", default=["."], help="folder of a run; default: here"
    )
    parser.add_argument("--output", metavar="FILE", help="the page to write (report.html)")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--table", action="store_true", help="print only a table of the runs")
    modes.add_argument("--csv", action="store_true", help="print only the table, as CSV")
    modes.add_argument("--live", action="store_true", help="serve a page that follows the runs")
    options = parser.parse_args(arguments)
    if options.output and (options.table or options.csv or options.live):
        parser.error("no effect of --output: no page is written")

    from reports import html, live, runs  # bring torch, which --help need not wait for

    if options.live:
        live.serve(options.runs)
        return
    found = runs.load_all(options.runs)
    table = runs.rows_of(runs.groups_of(found))
    log(runs.as_csv(table).rstrip("\n") if options.csv else runs.as_text(table))
    if not (options.csv or options.table):
        path = options.output or "report.html"
        html.write(path, found)
        note(f"written   {path}")


if __name__ == "__main__":
    run_command(main)
