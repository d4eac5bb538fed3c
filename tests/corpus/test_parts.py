"""Several texts: split by shares, mixed by weights, validated on a part or on a text of its own."""

from pathlib import Path

import numpy as np
import pytest

from corpus.corpus import read_corpus
from system.errors import ConfigError, DataError
from tokenizer import END_OF_TEXT, END_OF_TEXT_ID
from training.settings import DATA
from training.wanted import options_from, wanted

pytestmark = pytest.mark.usefixtures("place")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write(place):
    """Writes stories with these numbers into a file; a story is 10 tokens and its separator."""

    def write_stories(name, numbers, *, word="cat"):
        stories = [f"The {word} number {n:03} saw {n + 200} birds. " for n in numbers]
        (place / name).write_text(END_OF_TEXT.join(stories))
        return name

    return write_stories


@pytest.fixture
def read(tokenizer, tiny_config):
    def read_changed(data, **changes):
        changes = {"eval_tokens": 10**9, **changes}
        return read_corpus({**tiny_config, "data": data, **changes}, tokenizer, share_rows=True)

    return read_changed


def stories_of(ids, tokenizer):
    return {story.strip() for story in tokenizer.decode([*map(int, ids)]).split(END_OF_TEXT)} - {""}


def windows_in(corpus, start, stop):
    return [tuple(row) for i in range(start, stop) for row in corpus.batches[i][0].tolist()]


def test_copies_are_kept_apart_across_all_sources(read, write, tokenizer):
    names = [write("a.txt", range(100)), write("b.txt", [*range(50, 150), *range(99, 40, -1)])]
    alone = read(names[1])
    for corpus in (alone, read(names), read(dict.fromkeys(names, 1))):
        trained = stories_of(corpus.train_ids[:], tokenizer)
        validated = stories_of(corpus.val_ids, tokenizer)
        assert len(trained) + len(validated) == (150 if corpus is not alone else 109)
        assert 0.05 < len(corpus.val_ids) / len(corpus.train_ids) < 0.2


def test_a_list_is_one_text_of_which_each_source_gives_its_share(read, write, tokenizer):
    names = [write("cats.txt", range(60)), write("dogs.txt", range(40), word="dog")]
    corpus = read(names)
    ids = [tokenizer.encode(Path(name).read_text(), allowed_special="all") for name in names]
    assert len(corpus.train_ids) + len(corpus.val_ids) == sum(map(len, ids)) + 1  # a separator
    validated = stories_of(corpus.val_ids, tokenizer)
    assert [sum(word in story for story in validated) for word in ("cat", "dog")] == [6, 4]
    assert "joined with dogs.txt" in str(corpus)
    starts = range(0, len(corpus.train_ids) - 16, 16)
    shown = windows_in(corpus, 0, corpus.batches.num_per_epoch)
    assert len(shown) == len(starts)
    part = read(names, eval_tokens=50)
    assert stories_of(part.val_ids[:22], tokenizer) <= validated
    counts = [tokenizer.decode(part.val_ids.tolist()).count(word) for word in ("cat", "dog")]
    assert counts == [3, 2]


def test_a_mixture_has_the_weights_in_its_batches_and_its_validation(read, write, tokenizer):
    names = [write("cats.txt", range(200)), write("dogs.txt", range(100), word="dog")]
    corpus = read(dict(zip(names, (1, 3), strict=True)), stride=13, eval_tokens=88)
    shown = [tokenizer.decode(row) for row in windows_in(corpus, 0, 1000)]
    assert sum("dog" in text for text in shown) / len(shown) == pytest.approx(0.75, rel=0.01)
    assert not [text for text in shown if "dog" in text and "cat" in text]
    num_windows = len(corpus.batches.dataset.datasets[1])
    assert len({text for text in shown if "dog" in text}) == num_windows
    validated = tokenizer.decode(corpus.val_ids.tolist())
    assert (validated.count(" cat "), validated.count(" dog ")) == (2, 6)
    assert "mixture of 25.0% cats.txt, 75.0% dogs.txt" in str(corpus)


def test_a_source_of_a_mixture_has_to_hold_a_window(read, write):
    names = [write("cats.txt", range(200)), write("short.txt", [1])]
    read(names)
    with pytest.raises(DataError, match=r"too short \(.*short\.txt: 1\d tokens to train on"):
        read(dict.fromkeys(names, 1))


@pytest.mark.parametrize("is_named", [True, False])
def test_a_validation_text_is_whole_and_its_documents_are_not_trained_on(
    read, write, tokenizer, is_named
):
    write("Tales-train.txt", range(100))
    val_name = write("heldout.txt" if is_named else "Tales-valid.txt", range(90, 140))
    corpus = read("Tales-train.txt", val_data=val_name if is_named else "")
    expected = tokenizer.encode(Path(val_name).read_text(), allowed_special="all")
    assert corpus.val_ids.tolist() == expected
    assert len(stories_of(corpus.train_ids[:], tokenizer)) == 90
    assert f"validation on {val_name}; 109 tokens not trained on" in str(corpus)
    Path(val_name).write_text("Another one.")
    changed = read("Tales-train.txt", val_data=val_name if is_named else "")
    assert changed.text_sha256 != corpus.text_sha256


def test_a_second_start_takes_the_split_from_its_note(read, write, monkeypatch):
    names = [write("a.txt", range(90)), write("b.txt", range(60, 150)), write("c.txt", range(9))]
    asked = [(names, {}), (names[:2], {}), (names[:2], {"val_data": names[2]})]
    asked += [(names[0], {"val_fraction": 0.3}), (names[0], {"seq_len": 200})]
    firsts = [read(data, **changes) for data, changes in asked]
    assert len({len(corpus.train_ids) for corpus in firsts}) == len(asked)
    monkeypatch.setattr("corpus.parts.Documents.of", None)  # no document is looked at
    for first, (data, changes) in zip(firsts, asked, strict=True):
        again = read(data, **changes)
        assert again.train_ids[:].tolist() == first.train_ids[:].tolist()
        assert again.val_ids.tolist() == first.val_ids.tolist()


def test_a_run_of_an_earlier_version_keeps_its_split(read, write, tokenizer, tiny_config):
    write("t.txt", [*range(50), *range(50)])
    write("t-valid.txt", range(9))
    earlier = read_corpus(
        {**tiny_config, "data": "t.txt"}, tokenizer, share_rows=True, order="drawn"
    )
    ids = tokenizer.encode(Path("t.txt").read_text(), allowed_special="all")
    assert [*earlier.train_ids[:], *earlier.val_ids.tolist()] == ids
    assert earlier.train_ids[-1:] == END_OF_TEXT_ID
    assert earlier.text_sha256 != read("t.txt").text_sha256


def test_the_hash_of_a_mixture_is_of_its_texts_and_shares(read, write):
    a, b = write("a.txt", range(60)), write("b.txt", range(60, 120))
    mixtures = [{a: 1, b: 3}, {a: 2, b: 6}, {a: 1, b: 2}, {b: 3, a: 1}, [a, b], a]
    first, same, *others = [read(mixture).text_sha256 for mixture in mixtures]
    assert first == same
    assert len({first, *others}) == 5


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.txt", "a.txt"),
        ('{"a.txt": 3, "folder/": 1.5}', {"a.txt": 3, "folder/": 1.5}),
        ('["a.txt", "b.txt"]', ["a.txt", "b.txt"]),
        ("{odd}.txt", "{odd}.txt"),
    ],
)
def test_data_on_the_command_line_may_be_json(text, value):
    assert options_from(["--data", text], {})["data"] == value
    assert DATA.is_met(value)


def test_paths_and_numbers_in_a_mixture_are_made_plain(place):
    asked = wanted({"data": {place / "a.txt": np.float32(2)}}, {})
    assert asked.config["data"] == {str(place / "a.txt"): 2.0}


@pytest.mark.parametrize("data", [{}, [], {"a.txt": 0}, {"a.txt": "3"}, {"": 1}, [3], {1: 1}, 7])
def test_a_mixture_needs_paths_and_positive_weights(data):
    with pytest.raises(
        ConfigError, match=r"data=.* is not a path, a list of paths, \{path: weight"
    ):
        wanted({"data": data}, {})


def test_val_fraction_beside_val_data_has_no_effect():
    with pytest.raises(ConfigError, match=r"--val_fraction has no effect: val_data is given"):
        wanted({"val_data": "a.txt"}, {"val_fraction": 0.2})
