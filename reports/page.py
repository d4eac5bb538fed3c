"""A report as one HTML file, without a network, for a phone as for a desk, in the light or dark."""

from collections.abc import Sequence
from html import escape

PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }}
body {{ margin: 0 auto; padding: 1rem; max-width: 50rem }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0 }}
td {{ overflow-wrap: anywhere; white-space: pre-line }}
th {{ white-space: nowrap }}
.bars td:last-child {{ width: 60% }}
i {{ display: block; height: 1em; margin: .25em 0; background: light-dark(#36c, #8af) }}
</style>
<h1>{title}</h1>
<table>{rows}</table>
<h2>{caption}</h2>
<table class="bars">{bars}</table>
</html>
"""


def page(
    title: str, rows: Sequence[tuple[str, str]], *, caption: str, bars: Sequence[tuple[str, int]]
) -> str:
    """The page of named lines and of a histogram: what it shows of the texts is escaped."""
    highest = max((count for _, count in bars), default=0)
    shown = [f"<tr><th>{escape(name)}<td>{escape(value)}" for name, value in rows]
    drawn = [
        f'<tr><th>{escape(name)}<td>{count:,}<td><i style="width:{100 * count / highest:.1f}%"></i>'
        for name, count in bars
    ]
    return PAGE.format(
        title=escape(title), rows="\n".join(shown), caption=escape(caption), bars="".join(drawn)
    )
