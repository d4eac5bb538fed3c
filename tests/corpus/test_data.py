"""The windows and their loader are those of the book."""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from data import GPTDatasetV1, create_dataloader_v1
from system.errors import DataError
from tokenizer import END_OF_TEXT, END_OF_TEXT_ID

STORIES = f"Tom saw a dog. \U0001f600\n{END_OF_TEXT}\nLily ran home.\n" * 7

# windows


@given(
    st.lists(st.integers(0, 2**16 - 1), min_size=2, max_size=40),
    st.integers(1, 12),
    st.integers(1, 50),
    st.sampled_from([np.array, torch.tensor, list, tuple, lambda ids: np.array(ids, np.uint16)]),
)
def test_windows_start_where_the_book_starts_them(ids, length, stride, collect):
    assume(len(ids) > length)
    dataset = GPTDatasetV1(collect(ids), None, length, stride)
    starts = range(0, len(ids) - length, stride)
    assert len(dataset) == len(starts)
    for (inputs, targets), start in zip(dataset, starts, strict=True):
        assert inputs.dtype == targets.dtype == torch.int64
        assert inputs.tolist() == ids[start : start + length]
        assert targets.tolist() == ids[start + 1 : start + length + 1]


def test_an_array_is_read_window_by_window():
    class Mapped:  # as much of an array as a map of a large file has
        ndim, dtype = 1, np.dtype(np.uint16)

        def __len__(self):
            return 10**13

        def __getitem__(self, wanted):
            return np.arange(wanted.start, wanted.stop) % 50_000

    dataset = GPTDatasetV1(Mapped(), None, 7, 3)
    assert len(dataset) == -(-(10**13 - 7) // 3)
    start = 3 * (len(dataset) - 1)
    assert dataset[-1][1].tolist() == [n % 50_000 for n in range(start + 1, start + 8)]


def test_a_dataset_has_an_end():
    dataset = GPTDatasetV1(np.arange(30), None, 7, 3)
    assert dataset[-1][0].tolist() == dataset[len(dataset) - 1][0].tolist()
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_dataset_of_a_text_is_the_dataset_of_its_ids(tokenizer):
    text = STORIES + "half a pair: \ud83d"
    ids = tokenizer.encode(text, allowed_special="all")
    assert END_OF_TEXT_ID in ids
    assert GPTDatasetV1(text, tokenizer, 8, 3).ids.tolist() == ids


@pytest.mark.parametrize("largest", [2**16 - 1, 2**16, 100_256])
def test_tokenizer_may_have_ids_of_any_size(largest):
    tokenizer = SimpleNamespace(encode=lambda text, allowed_special: [1, largest, 2])
    inputs, targets = GPTDatasetV1("any text", tokenizer, 2, 1)[0]
    assert (inputs.tolist(), targets.tolist()) == ([1, largest], [largest, 2])


def test_text_shorter_than_a_window_is_an_error_with_the_counts():
    assert len(GPTDatasetV1(np.arange(8), None, 7, 1)) == 1  # the shortest text
    for ids in (np.arange(7), list(range(7))):
        with pytest.raises(DataError, match=r"\(7 tokens\): max_length=7 needs 8"):
            GPTDatasetV1(ids, None, 7, 1)
    with pytest.raises(DataError, match=r"\(0 tokens\)"):
        GPTDatasetV1([], None, 7, 1)


@pytest.mark.parametrize("txt", [torch.rand(9), np.ones((9, 9), int), ["a", "text"], 9, None])
def test_what_is_neither_text_nor_ids_is_an_error(txt):
    with pytest.raises(DataError, match="neither a text nor ids"):
        GPTDatasetV1(txt, None, 2, 1)


# the loader


def test_signatures_are_those_of_the_book():
    names = list(inspect.signature(GPTDatasetV1).parameters)
    assert names == ["txt", "tokenizer", "max_length", "stride"]
    parameters = inspect.signature(create_dataloader_v1).parameters
    assert next(iter(parameters)) == "txt"
    assert {name: parameters[name].default for name in list(parameters)[1:]} == {
        "batch_size": 4, "max_length": 256, "stride": 128,
        "shuffle": True, "drop_last": True, "num_workers": 0,
    }  # fmt: skip


@pytest.mark.parametrize("drop_last", [True, False])
def test_dataloader_gives_all_windows_shuffled_or_in_order(tokenizer, drop_last):
    dataset = GPTDatasetV1(STORIES, tokenizer, 8, 5)
    options = {"batch_size": 4, "max_length": 8, "stride": 5, "drop_last": drop_last}
    expected = [inputs.tolist() for inputs, _ in dataset]
    del expected[len(dataset) // 4 * 4 if drop_last else len(dataset) :]
    assert len(dataset) % 4
    in_order = create_dataloader_v1(STORIES, shuffle=False, **options)
    assert torch.cat([inputs for inputs, _ in in_order]).tolist() == expected
    loader = create_dataloader_v1(STORIES, **options)
    shuffled = torch.cat([inputs for inputs, _ in loader]).tolist()
    assert shuffled != expected
    assert len(shuffled) == len(expected)


def test_loader_without_a_batch_is_an_error_with_the_numbers():
    options = {"batch_size": 9, "max_length": 2, "stride": 1}
    assert len(create_dataloader_v1(range(11), **options)) == 1
    assert len(create_dataloader_v1(range(10), drop_last=False, **options)) == 1
    with pytest.raises(DataError, match=r"\(8 windows, batch_size=9, drop_last=True\)"):
        create_dataloader_v1(range(10), **options)


@pytest.mark.parametrize(("max_length", "stride"), [(0, 1), (2, 0), (2, -1)])
def test_windows_have_a_length_and_a_distance(max_length, stride):
    with pytest.raises(DataError, match=f"max_length={max_length}, stride={stride}"):
        GPTDatasetV1(range(10), None, max_length, stride)
