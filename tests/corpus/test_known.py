"""A corpus is got by its name: checked, continued, and put where train.py finds it."""

import hashlib
from collections.abc import Iterator

import pytest
from forms import documents_of, parquet_table
from gpt2_server import FileServer, cut

from corpus import known, text
from corpus.sources import open_sources
from system import fetch
from system.errors import ConfigError, DataError, DownloadError, OutputError
from tokenizer import END_OF_TEXT

STORIES = [f"Tom saw {n} dogs.\n" for n in range(3000)]
SHARDS = [STORIES[:1000], STORIES[1000:]]
FILES = {
    "TinyStories.txt": END_OF_TEXT.join(STORIES).encode(),
    "many/000.parquet": parquet_table(SHARDS[0]),
    "many/001.parquet": parquet_table(SHARDS[1]),
}


@pytest.fixture
def server(monkeypatch, tmp_path) -> Iterator[FileServer]:
    """Serves files of the real form, which the table names by addresses of the hub."""
    monkeypatch.setattr(text, "PROJECT", tmp_path)
    monkeypatch.setattr(fetch, "BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(known, "TABLE_PATH", tmp_path / ".table.csv")
    monkeypatch.chdir(tmp_path)
    rows = ["name,place,address,bytes,sha256"]
    with FileServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        for place, content in FILES.items():
            server.files[f"/models/{place}"] = content
            name = place.partition("/")[0].removesuffix(".txt").lower()
            digest = hashlib.sha256(content).hexdigest()
            rows.append(f"{name},{place},{known.HUB}/{place},{len(content)},{digest}")
        known.TABLE_PATH.write_text("\n".join(rows))
        yield server


def run(*names):
    known.main(names)


def test_a_corpus_of_one_file_is_the_first_text_that_train_py_looks_for(
    server, tmp_path, monkeypatch, capsys
):
    server.script += [cut(1000), cut(20_000)]
    run("tinystories")
    assert capsys.readouterr().out.endswith("tinystories is complete; next: python train.py\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".downloads",
        ".table.csv",
        "TinyStories.txt",
    ]
    assert documents_of(open_sources("")) == STORIES
    assert server.num_sent == len(FILES["TinyStories.txt"])
    run("tinystories")
    assert len(server.requests) == 3  # two cuts, and none for what is there


def test_a_corpus_of_several_files_is_a_folder(server, tmp_path, monkeypatch, capsys):
    run("many")
    assert capsys.readouterr().out.endswith("next: python train.py --data many\n")
    assert documents_of(open_sources("many")) == STORIES


def test_wrong_bytes_another_file_and_no_room_are_errors(server, tmp_path, monkeypatch):
    server.files["/models/TinyStories.txt"] = FILES["TinyStories.txt"][:-1] + b"X"
    with pytest.raises(DownloadError, match=r"cannot fetch TinyStories.txt .*SHA-256") as caught:
        known.get(["tinystories"])
    assert "HF_ENDPOINT" in str(caught.value)
    assert not (tmp_path / "TinyStories.txt").exists()
    (tmp_path / "TinyStories.txt").write_text("my own")
    with pytest.raises(DataError, match=r"another file is in its place \(.*6 bytes"):
        known.get(["tinystories"])
    assert (tmp_path / "TinyStories.txt").read_text() == "my own"
    with pytest.raises(
        ConfigError, match=r"no such corpus \(pile\): choose from tinystories, many"
    ):
        known.get(["pile"])
    table = known.TABLE_PATH.read_text()
    known.TABLE_PATH.write_text(table.replace(f",{len(FILES['many/000.parquet'])},", f",{10**18},"))
    with pytest.raises(OutputError, match=r"no room for many .*free 1000000000.0 GB there"):
        known.get(["many"])


def test_the_table_names_what_is_promised():
    corpora = known.known_corpora()
    promised = {"tinystories", "tinystories-valid", "shakespeare", "wikitext-103"}
    assert corpora.keys() == promised | {"fineweb-edu-10bt"}
    for row in [row for rows in corpora.values() for row in rows]:
        assert row["address"].startswith("https://")
        assert (int(row["bytes"]) > 0, len(bytes.fromhex(row["sha256"]))) == (True, 32)
    assert len({row["place"] for rows in corpora.values() for row in rows}) == 19
    assert corpora["tinystories"][0]["place"] == text.TEXT_NAMES[0]
