"""Parts that several machines make join to the tokens that one makes."""

import shutil
from pathlib import Path

import pytest

from corpus.corpus import read_corpus
from corpus.listing import is_in_parts
from corpus.sources import open_sources
from corpus.token_cache import load_tokens
from corpus.token_parts import build_part, main, read_parts
from system.errors import ConfigError, DataError
from tokenizer import END_OF_TEXT

TEXTS = [
    "Once upon a time.",
    f"Tom ran.{END_OF_TEXT}",
    f"Lily saw{END_OF_TEXT}{END_OF_TEXT}it",
    "a",
]


@pytest.fixture
def sources(tmp_path):
    for number, text in enumerate(TEXTS):
        path = tmp_path / "texts" / f"{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return open_sources(tmp_path / "texts")


@pytest.mark.parametrize("total", [1, 2, 3, 4])
def test_parts_in_any_order_are_the_tokens_of_the_whole(sources, tmp_path, total):
    whole = load_tokens(sources, cache_parents=[tmp_path / "whole"])
    folder = tmp_path / "tokens"
    for number in reversed(range(1, total + 1)):
        build_part(sources, folder, number=number, total=total)
    assert is_in_parts(folder)
    tokens = read_parts(folder)
    assert tokens.ids[:].tolist() == whole.ids.tolist()
    assert tokens.document_ends.tolist() == whole.document_ends.tolist()
    assert tokens.document_hashes.tolist() == whole.document_hashes.tolist()
    assert tokens.first_seen.tolist() == whole.first_seen.tolist()
    assert {key: tokens.found[key] for key in ("files", "bytes", "forms")} == {
        key: whole.found[key] for key in ("files", "bytes", "forms")
    }


def test_a_finished_part_is_found_again_and_a_missing_one_is_named(sources, tmp_path, monkeypatch):
    assert not is_in_parts(tmp_path)
    build_part(sources, tmp_path, number=2, total=2)
    with pytest.raises(DataError, match=r"not finished.*: part-00001-of-00002\)"):
        read_parts(tmp_path)
    build_part(sources, tmp_path, number=1, total=2)
    before = read_parts(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("corpus.token_cache.build", None)
        build_part(sources, tmp_path, number=1, total=2)
    assert read_parts(tmp_path).text_sha256 == before.text_sha256
    shutil.copytree(tmp_path / "part-00001-of-00002", tmp_path / "part-00001-of-00001")
    with pytest.raises(DataError, match=r"of another number .*: part-00001-of-00001\)"):
        read_parts(tmp_path)


def test_a_run_trains_on_parts_as_on_the_text(tmp_path, tokenizer, tiny_config, capsys):
    for number in range(4):
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / f"{number}.txt").write_text(f"Tom saw dog number {number}. " * 30)
    for part in ("2/2", "1/2"):
        arguments = [str(tmp_path / "texts"), "--part", part, "--into", str(tmp_path / "tokens")]
        main(arguments, tiny_config)
    assert capsys.readouterr().out.endswith(f"python train.py --data {tmp_path}/tokens\n")
    names = ("texts", "tokens")
    config = {**tiny_config, "output_dir": str(tmp_path)}
    whole, parts = (
        read_corpus({**config, "data": str(tmp_path / name)}, tokenizer, share_rows=True)
        for name in names
    )
    assert len(parts.train_ids) == len(whole.train_ids)
    assert parts.vocabulary.size == whole.vocabulary.size
    for i in range(whole.batches.num_per_epoch):
        assert parts.batches[i][0].tolist() == whole.batches[i][0].tolist()


@pytest.mark.parametrize(("number", "total"), [(0, 2), (3, 2), (1, 5)])
def test_a_part_that_has_no_files_is_an_error(sources, tmp_path, number, total):
    with pytest.raises(DataError, match=rf"no part {number} of {total} \(4 files\)"):
        build_part(sources, tmp_path, number=number, total=total)
    assert not Path(tmp_path, "tokens").exists()


@pytest.mark.parametrize("part", ["3-8", "3", "a/b", "-1/2", ""])
def test_a_part_that_is_none_is_an_error(part, tiny_config):
    with pytest.raises(ConfigError, match=r"--part.*: see data.py build --help"):
        main(["texts", f"--part={part}"], tiny_config)
