"""The data report says of a text what a naive look at it says, and what to change."""

import re
from collections import Counter

import pytest

from corpus import report
from corpus.corpus import read_corpus
from corpus.report import facts_of, histogram, near_copies, warnings
from tokenizer import END_OF_TEXT
from training.settings import KEYS

STORIES = [f"Story {i}: {'the cat sat. ' * (i % 5 + 1)}" for i in range(40)]


@pytest.fixture
def read(text_folder, tokenizer, tiny_config):
    """The corpus of these documents."""

    def read_text(documents, **changes):
        (text_folder / "data.txt").write_text(END_OF_TEXT.join(documents), encoding="utf-8")
        config = {**tiny_config, "seq_len": 4, "stride": 4, **changes}
        return read_corpus(config, tokenizer, share_rows=True)

    return read_text


def test_documents_lengths_and_copies_are_those_of_a_naive_count(read, tokenizer):
    documents = [*STORIES, STORIES[3], "\n" + STORIES[3], STORIES[7], "", " \n"]
    facts = read(documents, eval_tokens=10**6).facts
    stripped = [text.strip() for text in documents if text.strip()]
    counts = Counter(stripped)
    assert (facts["documents"], facts["copies"]) == (43, sum(counts.values()) - len(counts))
    lengths = [len(tokenizer.encode(text)) + 1 for text in documents if text.strip()]  # its end
    assert facts["quantiles"][0] == min(lengths)
    assert facts["quantiles"][-1] == max(lengths)
    assert facts["quantiles"][2] == sorted(lengths)[len(lengths) // 2]
    naive = Counter(length.bit_length() for length in lengths)
    assert [count for _, count in histogram(facts)] == [naive[bits] for bits in sorted(naive)]
    text = END_OF_TEXT.join(documents)
    ids = tokenizer.encode(text, allowed_special="all")
    assert facts["train_tokens"] + facts["val_tokens"] == len(ids)


def test_both_parts_are_compared_by_documents_and_passages(read, text_folder, tokenizer):
    words = [f"word{i} and number{i * 7}" for i in range(400)]
    training = [" ".join(words[i : i + 20]) for i in range(0, 400, 20)]
    held_out = [training[0], " ".join(words[100:112]) + " and then something else", "No."]
    (text_folder / "val.txt").write_text(END_OF_TEXT.join(held_out), encoding="utf-8")
    facts = read(training, val_data="val.txt").facts
    assert facts["val_documents"] == 3
    ids = [
        tokenizer.encode(END_OF_TEXT.join(texts), allowed_special="all")
        for texts in (
            training[1:],
            held_out,  # a document of both parts is not trained on
        )
    ]
    windows = [
        [tuple(part[i : i + 13]) for i in range(len(part) - 12) if 50256 not in part[i : i + 13]]
        for part in ids
    ]
    shared = sum(window in set(windows[0]) for window in windows[1])
    assert facts["shared_passages"] == pytest.approx(shared / len(windows[1]))
    assert 0 < shared < len(windows[1])


def test_a_second_start_reads_what_the_first_has_noted(read, monkeypatch):
    first = read(STORIES).facts
    monkeypatch.setattr("corpus.corpus.facts_of", None)
    assert read(STORIES).facts == first


def test_near_copies_are_counted_or_it_is_said_what_they_need(read, monkeypatch):
    near = STORIES[4][:-2] + "!"
    corpus = read([f"{i} " + "a b c d e f g h " * 9 + str(i) for i in range(4)] + STORIES[:1])
    assert near_copies(corpus.parts).startswith("3 of 5 ") or near
    monkeypatch.setitem(__import__("sys").modules, "datasketch", None)
    assert near_copies(corpus.parts) == "not looked for: pip install datasketch"


GOOD = {
    "documents": 100,
    "val_documents": 10,
    "copies": 0,
    "on_both_sides": 0,
    "shared_passages": 0.0,
    "train_tokens": 10**6,
    "val_tokens": 10**5,
    "quantiles": [10, 100, 200, 300, 400, 500],
    "parameters": 10**4,
    "skipped": 0,
}


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"documents": 1}, {"data"}),
        ({"copies": 5}, {"num_epochs", "data"}),
        ({"on_both_sides": 1}, {"val_data"}),
        ({"shared_passages": 0.2}, {"val_data", "data"}),
        ({"val_tokens": 999}, {"val_fraction", "eval_tokens"}),
        ({"parameters": 10**7}, {"embedding_dim", "num_layers", "data"}),
        ({"quantiles": [1, 5, 10, 20, 30, 40]}, {"mask_documents"}),
        ({"skipped": 3}, {"data_errors"}),
    ],
)
def test_a_warning_names_the_keys_that_change_it(tiny_config, changes, keys):
    config = {**tiny_config, "seq_len": 128}
    assert warnings(GOOD, config) == []
    (warning,) = warnings({**GOOD, **changes}, config)
    assert keys <= set(re.findall(r"\w+", warning)) & KEYS.keys()


def test_facts_of_much_text_come_from_a_sample(read, tokenizer, monkeypatch):
    corpus = read(STORIES)
    whole = facts_of(corpus.parts, tokenizer)
    monkeypatch.setattr(report, "MAX_SAMPLED", 64)
    sampled = facts_of(corpus.parts, tokenizer)
    exact = {"documents", "copies", "quantiles", "histogram", "train_tokens", "kinds"}
    assert {key: sampled[key] for key in exact} == {key: whole[key] for key in exact}
