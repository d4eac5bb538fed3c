"""A page is one file that needs no other, and shows text as text."""

import re
from html.parser import HTMLParser

from reports.page import page


class Seen(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.text += data


def test_a_page_shows_rows_and_bars_and_escapes_them():
    nasty = "</td><script>alert('1')</script>&amp; \"{0}\""
    content = page(
        nasty, [("text", nasty), (nasty, "b")], caption=nasty, bars=[(nasty, 2), ("x", 1)]
    )
    seen = Seen(content)
    assert "script" not in seen.tags
    assert seen.text.count(nasty) == 6  # title and heading, and what follows
    assert [value for name, value in seen.attributes if name == "style"] == [
        "width:100.0%",
        "width:50.0%",
    ]


def test_a_page_needs_no_network_and_suits_a_phone_and_the_dark():
    content = page("t", [], caption="c", bars=[])
    assert not re.search(r"https?:|//|url\(|@import|<(link|script|img|iframe)", content)
    assert 'name="viewport" content="width=device-width' in content
    assert "color-scheme: light dark" in content
