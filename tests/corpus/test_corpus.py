"""A run reads every training window once an epoch, and validates on what it does not train on."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from corpus.corpus import choose_vocabulary, read_corpus
from data import Batches, GPTDatasetV1, split_at_document
from system.errors import DataError
from tokenizer import END_OF_TEXT, END_OF_TEXT_ID

# the split


def nearest_cut(ids, val_fraction, seq_len):
    """The split by its definition: try every place."""
    first, last = seq_len + 1, len(ids) - 2
    num_val = len(ids) * val_fraction
    wanted = len(ids) - round(num_val)
    near = range(max(first, wanted - int(num_val / 2)), min(last, wanted + int(num_val / 2)) + 1)
    ends = [cut for cut in near if ids[cut - 1] == END_OF_TEXT_ID]
    return min(ends, key=lambda cut: abs(cut - wanted), default=max(first, min(wanted, last)))


@pytest.mark.parametrize("seed", range(200))
def test_split_is_at_the_document_end_nearest_to_the_fraction(seed):
    rng = random.Random(seed)
    seq_len, val_fraction = rng.randrange(1, 9), rng.choice([0.01, 0.1, 0.3, 0.5])
    kinds = rng.choices([7, END_OF_TEXT_ID], weights=[rng.randrange(1, 20), 1], k=99)
    ids = np.array(kinds[: rng.randrange(seq_len + 3, 99)], dtype=np.uint16)
    train_ids, val_ids = split_at_document(ids, val_fraction, seq_len=seq_len)
    assert len(train_ids) == nearest_cut(ids.tolist(), val_fraction, seq_len)
    assert np.array_equal([*train_ids, *val_ids], ids)


def test_parts_are_views_and_no_window_reaches_into_the_validation_part():
    ids = np.arange(1000, dtype=np.uint16)
    ids[[300, 880, 950]] = END_OF_TEXT_ID
    train_ids, val_ids = split_at_document(ids, 0.1, seq_len=7)
    assert train_ids[-1] == END_OF_TEXT_ID
    assert len(train_ids) == 881
    assert np.shares_memory(train_ids, ids)
    assert np.shares_memory(val_ids, ids)
    windows = GPTDatasetV1(train_ids, None, 7, 1).windows
    assert np.array_equal(windows[-1], ids[873:881])


def test_text_of_one_document_is_split_inside_it():
    train_ids, val_ids = split_at_document(np.arange(1000, dtype=np.uint16), 0.1, seq_len=7)
    assert (len(train_ids), len(val_ids)) == (900, 100)


@pytest.mark.parametrize("val_fraction", [0.001, 0.1, 0.5])
def test_shortest_text_has_a_window_to_train_on_and_a_prediction_to_validate(val_fraction):
    train_ids, val_ids = split_at_document(np.arange(10), val_fraction, seq_len=7)
    assert len(GPTDatasetV1(train_ids, None, 7, 1)) == 1
    assert len(val_ids) == 2


@pytest.mark.parametrize("num_tokens", [0, 1, 7, 9])
def test_shorter_text_is_an_error_with_both_counts(num_tokens):
    with pytest.raises(DataError, match=rf"\({num_tokens} tokens\): seq_len=7 needs at least 10;"):
        split_at_document(np.arange(num_tokens), 0.1, seq_len=7)


# batches


def batches_of(num_windows, batch_size, *, seed=3):
    """Batches of windows whose first token is their number."""
    return Batches(GPTDatasetV1(np.arange(num_windows + 2), None, 2, 1), batch_size, seed=seed)


def order_of(batches, epoch=0):
    numbers = range(epoch * batches.num_per_epoch, (epoch + 1) * batches.num_per_epoch)
    return [row[0] for i in numbers for row in batches[i][0].tolist()]


@pytest.mark.parametrize(("num_windows", "batch_size"), [(11, 4), (12, 4), (3, 8), (1, 1), (5, 1)])
def test_each_epoch_shows_every_window_once_and_the_rest_in_a_last_batch(num_windows, batch_size):
    batches = batches_of(num_windows, batch_size)
    for epoch in range(3):
        assert sorted(order_of(batches, epoch)) == list(range(num_windows))
    sizes = [len(batches[i][0]) for i in range(batches.num_per_epoch)]
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
    assert sizes[-1] == num_windows - batch_size * (len(sizes) - 1) > 0


def test_batch_is_a_function_of_seed_and_number_and_leaves_random_states_alone():
    expected = [batches_of(11, 4)[i][0].tolist() for i in range(9)]
    other, batches = batches_of(11, 4, seed=8), batches_of(11, 4)
    torch.manual_seed(1)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    for i in [8, 0, 3, 3, 7, 1]:
        other[i]
        assert batches[i][0].tolist() == expected[i]
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state()[1].tolist() == numpy_state


def test_orders_of_seeds_and_epochs_differ():
    orders = [
        order_of(batches_of(29, 4, seed=seed), epoch) for seed in range(4) for epoch in (0, 1)
    ]
    assert len(set(map(tuple, orders))) == len(orders)


def test_order_does_not_depend_on_the_batch_size():
    assert (
        order_of(batches_of(11, 4)) == order_of(batches_of(11, 3)) == order_of(batches_of(11, 11))
    )


def test_batch_holds_the_rows_of_the_dataset():
    batches = batches_of(11, 4)
    inputs, targets = batches[1]
    items = [batches.dataset[index] for index in batches.window_indices(1)]
    assert torch.equal(inputs, torch.stack([item[0] for item in items]))
    assert torch.equal(targets, torch.stack([item[1] for item in items]))


def test_windows_before_a_batch_are_counted_over_short_last_batches():
    batches = batches_of(11, 4)
    sizes = [len(batches[i][0]) for i in range(10)]
    assert [batches.num_windows_before(i) for i in range(11)] == np.cumsum([0, *sizes]).tolist()


# the corpus


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
    assert corpus.val_ids.tolist() == ids[corpus.num_train_tokens :]
    assert ids[corpus.num_train_tokens - 1] == END_OF_TEXT_ID
    starts = range(0, corpus.num_train_tokens - 16, 16)
    shown = [
        row for i in range(corpus.batches.num_per_epoch) for row in corpus.batches[i][0].tolist()
    ]
    assert sorted(shown) == sorted(ids[start : start + 16] for start in starts)


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
    windows = read(stride=5).batches.dataset.windows
    assert windows.shape[1] == 17
    assert windows[1, 0] == windows[0, 5]


def test_tokens_that_do_not_occur_share_a_row_if_allowed(read):
    corpus = read(share_rows=True)
    used = set(np.unique(corpus.batches.dataset.windows)) | {END_OF_TEXT_ID}
    rows = corpus.vocabulary.row_of_token
    assert corpus.vocabulary.size == len(used) + 1
    assert len({int(rows[token]) for token in used}) == len(used)
    assert f"{50257 - len(used):,} of GPT-2's tokens do not occur in it" in str(corpus)


def test_every_token_has_its_own_row_if_sharing_is_off(read):
    corpus = read(share_rows=False)
    assert corpus.vocabulary.size == 50257
    assert "do not occur" not in str(corpus)


@pytest.mark.parametrize(("num_used", "size"), [(25_126, 25_128), (25_127, 50_257)])
def test_rows_are_shared_where_that_saves_half_of_them(num_used, size):
    ids = np.arange(num_used, dtype=np.uint16)  # and the end of text, and the shared row
    assert choose_vocabulary(ids, 50_257, share_rows=True).size == size


def test_summary_names_the_file_why_it_and_the_counts(read, text_folder):
    corpus = read()
    summary = str(corpus)
    assert str(text_folder / "data.txt") in summary
    assert "the first found of TinyStories.txt, data.txt, example.txt" in summary
    assert f"{corpus.num_train_tokens:,} tokens to train on" in summary
    assert f"{len(corpus.val_ids):,} to validate on" in summary
    assert "U+FFFD" not in summary


def test_replaced_bytes_are_reported(read, text_folder):
    with (text_folder / "data.txt").open("ab") as file:
        file.write(b"\nbad \xff\xfe bytes")
    with pytest.raises(DataError, match="invalid utf-8"):
        read()
    assert "2 invalid sequences read as U+FFFD" in str(read(replace_invalid_utf8=True))


@pytest.mark.parametrize("content", ["", "\n \n", "a", "Once upon a time", END_OF_TEXT])
def test_text_too_short_to_train_on_is_an_error(read, text_folder, content):
    (text_folder / "data.txt").write_text(content)
    with pytest.raises(DataError, match=r"empty or blank|too short"):
        read()
