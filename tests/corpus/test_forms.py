"""The same documents in any form give the same pieces, whatever they hold."""

import json
import re

import pytest
from forms import FORMS, PACKERS, documents_of, folder_of, json_lines, parquet_table, zipped
from hypothesis import given
from hypothesis import strategies as st
from test_pieces import AWKWARD, ids_of

from corpus import pieces, text
from corpus.sources import open_sources
from system.errors import DataError
from tokenizer import END_OF_TEXT

WORDS = [word for word in AWKWARD if not set(word) & {"\r", "<", "\ufeff"}]
DOCUMENTS = st.lists(st.lists(st.sampled_from(WORDS)).map("".join), min_size=1, max_size=9)


def read(path, **options):
    """The text of a source's documents, and what was found there."""
    sources = open_sources(path, **options)
    documents = documents_of(sources)
    assert sources.found["num_read"] == sources.num_bytes
    is_ended = list(sources.pieces())[-1].is_ended
    assert sources.found["documents"] == len(documents) - is_ended
    json.dumps(sources.found)
    return documents


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(text, "BLOCK_BYTES", 7)
    monkeypatch.setattr(pieces, "MAX_PIECE_CHARS", 40)
    monkeypatch.setattr(pieces, "BATCH_CHARS", 30)


@pytest.mark.parametrize("name", FORMS)
@given(documents=DOCUMENTS)
def test_every_form_holds_the_same_documents(tmp_path, name, documents):
    path = tmp_path / name
    path.write_bytes(FORMS[name](documents))
    assert read(path) == [document.replace("\r", "\n") for document in documents]


@given(documents=DOCUMENTS)
def test_a_folder_and_a_zip_archive_hold_a_document_in_each_file(tmp_path_factory, documents):
    folder = folder_of(tmp_path_factory.mktemp("a folder") / "books", documents)
    assert read(folder) == documents
    assert read(str(folder / "*" / "0*.txt")) == documents
    files = sorted(folder.rglob("*.txt"))
    assert read(files) == documents
    packed = folder / "all.zip"
    packed.write_bytes(zipped({str(f.relative_to(folder)): f.read_bytes() for f in files[::-1]}))
    assert read(packed) == documents


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("suffix", PACKERS)
def test_every_form_is_read_packed_and_packed_again_in_a_zip_archive(tmp_path, name, suffix):
    documents = ["one", "", "two\n\nlines é 你 😀", "x" * 300]
    packed = PACKERS[suffix](FORMS[name](documents))
    for path, content in (
        (tmp_path / (name + suffix), packed),
        (tmp_path / f"{name}.zip", zipped({f"in/{name}{suffix}": packed})),
        (tmp_path / f"b{name}.zip", zipped({f"in/{name}": FORMS[name](documents)})),
    ):
        path.write_bytes(content)
        assert read(path) == documents
    assert read(tmp_path) == documents * 3


@pytest.mark.parametrize("name", [name for name in FORMS if name != "a.parquet"])
def test_every_form_is_read_in_any_encoding_and_with_any_line_end(tmp_path, name):
    documents = ["one", "two\n\nlines é 你 😀", ""]
    content = FORMS[name](documents).decode()
    path = tmp_path / name
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):  # the last writes a mark as well
        for line_end in ("\n", "\r\n", "\r"):
            path.write_bytes(re.sub("\r\n|\n", line_end, content).encode(encoding))
            assert read(path) == documents


@pytest.mark.parametrize("name", FORMS)
def test_every_form_that_grows_while_it_is_read_is_an_error(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(FORMS[name](["one"] * 9))
    pieces = open_sources(path).pieces()
    next(pieces)
    with path.open("ab") as file:
        file.write(b"\n")
    with pytest.raises(DataError, match="changed while it was read"):
        list(pieces)


def test_ids_are_those_of_the_text_with_separators(tmp_path, tokenizer, stories):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(stories))
    whole = tokenizer.encoding.encode(END_OF_TEXT.join(stories), allowed_special="all")
    assert ids_of(tokenizer, open_sources(path).pieces()) == whole


@pytest.fixture
def stories():
    return [f"Tom saw {n} dogs. \U0001f600\nHe ran home." * n for n in range(9)]


def test_a_separator_inside_a_record_is_text(tmp_path, tokenizer):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines([f"a{END_OF_TEXT}b", "c"]))
    ids = ids_of(tokenizer, open_sources(path).pieces())
    assert ids == [
        *tokenizer.encoding.encode_ordinary(f"a{END_OF_TEXT}b"),
        50256,
        *tokenizer.encode("c"),
    ]


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        (["a", "b"], ["a", "b"]),
        ([f"a{END_OF_TEXT}", "b"], ["a", "b"]),
        ([f"a{END_OF_TEXT}\n", "b"], ["a", "\n", "b"]),
        ([f"a{END_OF_TEXT * 2}", "b"], ["a", "", "b"]),
        (["a", f"{END_OF_TEXT}b"], ["a", "", "b"]),
        (["a", "", "b"], ["a", "", "b"]),
        ([END_OF_TEXT, END_OF_TEXT, "b"], ["", "", "b"]),
    ],
)
def test_a_separator_at_the_end_of_a_file_is_the_one_before_the_next(tmp_path, contents, expected):
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.txt").write_text(content)
    assert read(tmp_path) == expected


def test_another_field_is_read_where_data_field_names_it(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(["one", "two"], field="body"))
    assert read(path, field="body") == ["one", "two"]


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("use_dictionary", [False, True])
def test_parquet_is_read_in_any_encoding(tmp_path, compression, use_dictionary):
    documents = [f"same {n % 3}" for n in range(200)]
    path = tmp_path / "a"
    path.write_bytes(
        parquet_table(documents, compression=compression, use_dictionary=use_dictionary)
    )
    assert read(path) == documents


@pytest.mark.parametrize("number", [50_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_very_many_empty_documents_are_read(tmp_path, monkeypatch, number):
    monkeypatch.undo()
    (tmp_path / "a.txt").write_text(END_OF_TEXT * number)
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n' * number)
    for name in ("a.txt", "a.jsonl"):
        sources = open_sources(tmp_path / name)
        assert len(documents_of(sources)) - (name == "a.txt") == number
        assert sources.found["documents"] == number
