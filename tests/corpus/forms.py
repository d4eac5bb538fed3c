"""The same documents in every form that is read, for the tests of corpus/."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow
import zstandard
from pyarrow import parquet

from corpus.sources import Sources
from tokenizer import END_OF_TEXT

Documents = Sequence[str]


def text(documents: Documents) -> bytes:
    return END_OF_TEXT.join(documents).encode()


def json_lines(documents: Documents, field: str = "text") -> bytes:
    lines = [json.dumps({"id": n, field: d}) for n, d in enumerate(documents)]
    return "".join(line + "\n" for line in lines).encode()


def table(documents: Documents, *, delimiter: str = ",") -> bytes:
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter)
    writer.writerows([("id", "text"), *enumerate(documents)])
    return file.getvalue().encode()


def parquet_table(documents: Documents, **options: object) -> bytes:
    file = io.BytesIO()
    columns = {"id": range(len(documents)), "text": pyarrow.array(documents, pyarrow.string())}
    parquet.write_table(pyarrow.table(columns), file, row_group_size=3, **options)
    return file.getvalue()


FORMS: dict[str, Callable[[Documents], bytes]] = {
    "a.txt": text,
    "a.md": text,
    "a": text,
    "a.jsonl": json_lines,
    "a.ndjson": json_lines,
    "a.json": lambda documents: json.dumps([{"text": d} for d in documents], indent=1).encode(),
    "b.json": lambda documents: json.dumps(list(documents)).encode(),
    "c.json": json_lines,  # as many call it
    "a.csv": table,
    "a.tsv": lambda documents: table(documents, delimiter="\t"),
    "a.parquet": parquet_table,
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


def documents_of(sources: Sources) -> list[str]:
    """The documents; after a separator at the end comes an empty one."""
    whole = [
        text.replace(END_OF_TEXT, "\0") if has_separators else text
        for text, has_separators in sources.pieces()
    ]
    return "".join(whole).split("\0")


def zipped(files: dict[str, bytes], **options: object) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def folder_of(parent: Path, documents: Documents) -> Path:
    """A folder with a file for each document, in their order."""
    for number, document in enumerate(documents):
        path = parent / f"{number // 3:03}" / f"{number:05}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(document.encode())
    return parent
