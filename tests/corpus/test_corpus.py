"""A run trains on one part of its text, validates on the rest, and says what it reads."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from forms import FORMS, PACKERS, folder_of, zipped

from corpus.corpus import choose_vocabulary, read_corpus
from system.errors import DataError
from tokenizer import END_OF_TEXT, END_OF_TEXT_ID


@pytest.fixture
def read(text_folder, tokenizer, tiny_config):
    """Reads the corpus of the tiny text with some settings changed."""

    def read_changed(*, share_rows=True, **changes):
        return read_corpus({**tiny_config, **changes}, tokenizer, share_rows=share_rows)

    return read_changed


def test_training_and_validation_tokens_are_the_text(read, text_folder, tokenizer):
    corpus = read(eval_tokens=10**9)
    content = (text_folder / "data.txt").read_text(encoding="utf-8")
    ids = tokenizer.encode(content, allowed_special="all")
    assert corpus.path == Path("data.txt")
    assert corpus.val_ids.dtype == torch.int64
    assert corpus.val_ids.tolist() == ids[len(corpus.train_ids) :]
    assert ids[len(corpus.train_ids) - 1] == END_OF_TEXT_ID
    starts = range(0, len(corpus.train_ids) - 16, 16)
    shown = [
        row for i in range(corpus.batches.num_per_epoch) for row in corpus.batches[i][0].tolist()
    ]
    assert sorted(shown) == sorted(ids[start : start + 16] for start in starts)


def test_the_same_documents_in_any_form_give_the_same_ids_split_and_batches(read, tmp_path):
    documents = [f"Tom saw {n} dogs and {n * n} cats.\nHe ran home. \U0001f600" for n in range(60)]
    folder_of(tmp_path / "folder", documents)
    files = sorted((tmp_path / "folder").rglob("*.txt"))
    names = [str(file.relative_to(tmp_path)) for file in files]
    contents = {file: file.read_bytes() for file in files}
    (tmp_path / "all.zip").write_bytes(zipped(dict(zip(names, contents.values(), strict=True))))
    for name, form in FORMS.items():
        (tmp_path / name).write_bytes(form(documents))
        (tmp_path / f"{name}.zst").write_bytes(PACKERS[".zst"](form(documents)))
    expected = read(data=str(tmp_path / "a.txt"))
    assert expected.train_ids[:].tolist().count(END_OF_TEXT_ID) > 40
    for name in ["folder", "all.zip", *FORMS, *(f"{name}.zst" for name in FORMS)]:
        corpus = read(data=str(tmp_path / name))
        assert corpus.train_ids[:].tolist() == expected.train_ids[:].tolist(), name
        assert corpus.val_ids.tolist() == expected.val_ids.tolist(), name
        for i in (0, 7):
            assert all(map(torch.equal, corpus.batches[i], expected.batches[i])), name


@pytest.mark.parametrize("eval_tokens", [2, 31])
def test_validation_is_capped_in_tokens_and_counts_the_bytes_it_predicts(
    read, tokenizer, eval_tokens
):
    whole, capped = read(eval_tokens=10**9), read(eval_tokens=eval_tokens)
    assert capped.val_ids.tolist() == whole.val_ids[:eval_tokens].tolist()
    predicted = tokenizer.decode(capped.val_ids[1:].tolist())
    assert capped.num_val_bytes == len(predicted.encode())


def test_accumulated_batches_are_the_rows_of_the_large_batch(read):
    accumulated, large = read(batch_size=3, grad_accum_steps=4), read(batch_size=12)
    for i in range(large.batches.num_per_epoch + 1):
        assert torch.equal(accumulated.batches[i][0], large.batches[i][0])
        assert torch.equal(accumulated.batches[i][1], large.batches[i][1])


def test_seed_and_stride_reach_the_batches(read):
    assert read(seed=7).batches.seed == 7
    dataset = read(stride=5).batches.dataset
    assert torch.equal(dataset[1][0][:11], dataset[0][0][5:])


def test_tokens_that_do_not_occur_share_a_row_if_allowed(read):
    corpus = read(share_rows=True)
    used = {*corpus.train_ids[:].tolist(), END_OF_TEXT_ID}
    rows = corpus.vocabulary.row_of_token
    assert corpus.vocabulary.size == len(used) + 1
    assert len({int(rows[token]) for token in used}) == len(used)
    assert f"{50257 - len(used):,} of GPT-2's tokens do not occur" in str(corpus)


def test_every_token_has_its_own_row_if_sharing_is_off(read):
    corpus = read(share_rows=False)
    assert corpus.vocabulary.size == 50257
    assert "do not occur" not in str(corpus)


@pytest.mark.parametrize(("num_used", "size"), [(25_126, 25_128), (25_127, 50_257)])
def test_rows_are_shared_where_that_saves_half_of_them(num_used, size):
    ids = np.arange(num_used, dtype=np.uint16)  # and the end of text, and the shared row
    assert choose_vocabulary(ids, 50_257, share_rows=True).size == size


def test_summary_names_the_file_why_it_and_the_counts(read):
    corpus = read()
    assert str(corpus).startswith("data.txt, given as data\n")
    assert f"{len(corpus.train_ids):,} tokens to train on" in str(corpus)
    assert f"{len(corpus.val_ids):,} to validate on" in str(corpus)
    assert "U+FFFD" not in str(corpus)


def test_what_was_found_is_said_each_time(read, text_folder):
    folder = text_folder / "books"
    folder.mkdir()
    story = "Once upon a time a cat sat on a mat. " * 20
    lines = [
        json.dumps({"story": story}),
        json.dumps({"text": story}),
        json.dumps({"story": story}),
    ]
    (folder / "a.jsonl").write_text("\n".join(lines))
    (folder / "b.txt").write_text(story)
    (folder / "c.png").write_bytes(b"\x89PNG")
    (folder / ".d").touch()
    with pytest.raises(DataError, match=r"no field 'story' \(.*a\.jsonl, line 2 has 'text'\)"):
        read(data="books", data_field="story")
    for _ in ("tokenized", "from the cache"):
        lines = str(read(data="books", data_field="story", data_errors="skip")).splitlines()
        assert lines[0].endswith("a.jsonl, the first of 3 files in books")
        said = "documents: 3, from 1 jsonl, 1 txt; one is a record's 'story' or what"
        assert lines[2].strip().startswith(said)
        assert lines[3].strip() == "passed over: 1 hidden, 1 pictures and the like"
        assert lines[4].strip().startswith("skipped 1 that cannot be read: no field 'story' (")


def test_the_text_beside_the_program_is_the_default_wherever_one_stands(
    read, text_folder, tmp_path_factory, monkeypatch
):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "data.txt").write_text("another text that nobody asked for")
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr("corpus.text.PROJECT", text_folder)
    (text_folder / "Data.txt.txt").touch()
    corpus = read(data="")
    first = str(corpus).splitlines()[0]
    assert corpus.path == text_folder / "data.txt"
    assert f"{corpus.path}, the first found of TinyStories.txt, data.txt, example.txt" in first
    assert "not taken: Data.txt.txt (rename, or give as data)" in first


def test_replaced_bytes_are_reported_each_time(read, text_folder):
    with (text_folder / "data.txt").open("ab") as file:
        file.write(b"\nbad \xff\xfe bytes")
    with pytest.raises(DataError, match="invalid utf-8"):
        read()
    for _ in ("tokenized", "from the cache"):
        corpus = read(replace_invalid_utf8=True)
        assert "2 invalid sequences read as U+FFFD" in str(corpus)


@pytest.mark.parametrize(
    ("content", "cause"),
    [("\n \n", "empty or blank"), ("a", "too short"), (END_OF_TEXT, "too short")],
)
def test_text_too_short_to_train_on_is_an_error(read, text_folder, content, cause):
    (text_folder / "data.txt").write_text(content)
    with pytest.raises(DataError, match=cause):
        read()
