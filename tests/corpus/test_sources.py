"""Text of any form is found, read as documents, and its faults are located."""

import pytest
from forms import documents_of

from corpus.sources import open_sources
from system.errors import DataError
from tokenizer import END_OF_TEXT


def test_a_text_file_is_what_it_was_with_its_separators_named(tmp_path):
    path = tmp_path / "data.txt"
    path.write_bytes(f"one\r\n{END_OF_TEXT}two é{END_OF_TEXT}".encode())
    sources = open_sources(path)
    assert documents_of(sources) == ["one\n", "two é", ""]
    assert sources.found["documents"] == 2
    assert sources.found["num_read"] == sources.num_bytes == path.stat().st_size


@pytest.mark.parametrize("when", ["before it is read", "while it is read"])
def test_a_text_that_changes_is_an_error(tmp_path, when):
    path = tmp_path / "data.txt"
    path.write_text(f"a{END_OF_TEXT}b")
    sources = open_sources(path)
    pieces = sources.pieces()
    if when == "while it is read":
        next(pieces)
    with path.open("a") as file:
        file.write("more")
    with pytest.raises(DataError, match=r"changed while it was read \(.*data\.txt\): start again"):
        list(pieces)
