"""What `python data.py` does: shows what a text is like before a run, or gets a corpus."""

from collections.abc import Sequence
from typing import Any

from corpus import known, token_parts
from corpus.report import histogram, near_copies
from system.command_line import Parser
from system.files import write_durably
from system.process import log
from training.parallel import ALONE
from training.wanted import Wanted, wanted

BAR = 40  # characters of the longest
CAPTION = "Documents by their number of tokens"
PAGE_NAME = "data_report.html"
MEASURED_SECONDS = 2  # of updates


def main(arguments: Sequence[str], config: dict[str, Any]) -> None:
    """`get NAME`, `build PATH`, or what `train.py` with this config would train on."""
    if arguments[:1] == ["get"]:
        return known.main(arguments[1:])
    if arguments[:1] == ["build"]:
        return token_parts.main(arguments[1:], wanted(config, {}).config)
    parser = Parser(
        prog="data.py",
        description="Shows what a text is like. Or: data.py get NAME, data.py build PATH.",
    )
    parser.add_argument("data", metavar="PATH", nargs="+", help="what train.py takes as --data")
    parser.add_argument("--html", metavar="FILE", nargs="?", const=PAGE_NAME, help="also as a page")
    options = parser.parse_args(arguments)
    data = options.data if len(options.data) > 1 else options.data[0]
    return show(wanted(config, {"data": data}), options.html)


def show(asked: Wanted, page_path: str | None) -> None:
    """Prints the whole report, and writes it as a page where one is asked for."""
    from reports import html  # brings torch, which --help need not wait for
    from training import begin
    from training.description import as_text, rows_about

    run = begin.assembled(*begin.prepared(asked, ALONE), asked, ALONE)
    corpus = run.corpus
    bits = ", ".join(f"{name} {bits:.2f}" for name, bits in corpus.baselines().items())
    rows = rows_about(run, corpus.facts, measured=MEASURED_SECONDS)
    rows.insert(2, ("baselines", f"{bits} bits a byte of the validation text"))
    rows.insert(2, ("near", f"copies: {near_copies(corpus.parts)}"))
    bars = histogram(corpus.facts)
    highest = max(count for _, count in bars)
    log(as_text(rows, max_lines=100) + f"\n\n{CAPTION}")
    for name, count in bars:
        log(f"{name:>22} {count:>10,} {'#' * -(-BAR * count // highest)}")
    if page_path:
        about = html.section("Text and model", html.rows(html.lines_of(rows)))
        lengths = html.section(CAPTION, html.bars(bars))
        content = html.document(f"{corpus.path.name}: data report", about + lengths)
        write_durably(page_path, lambda file: file.write(content.encode()))
        log(f"\nwritten   {page_path}")
