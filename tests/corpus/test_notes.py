"""Notes are kept beside a text's tokens, and nothing that lies there stops a start."""

import json

import numpy as np
import pytest

from corpus.notes import NUM_KEPT, remembered


def test_a_note_is_computed_once(tmp_path):
    path, calls = tmp_path / ".tokens" / "notes.json", []

    def compute():
        calls.append(1)
        return {"xz": 1 / 3}

    for _ in range(3):
        assert remembered([path], "a", compute) == {"xz": 1 / 3}
    assert len(calls) == 1
    assert remembered([path], "b", lambda: {"xz": 2}) == {"xz": 2}
    assert remembered([path], "a", compute) == {"xz": 1 / 3}


def test_arrays_are_kept_and_every_damage_is_noticed(tmp_path):
    path = tmp_path / "notes.bin"
    noted = {"a": np.arange(600).reshape(2, 300), "b": np.empty((2, 0), np.int64)}
    for _ in range(2):
        for key, array in noted.items():
            kept = remembered([path], key, lambda array=array: array)
            assert np.array_equal(kept, array)
            assert kept.dtype == array.dtype
    raw = path.read_bytes()
    for place in range(0, len(raw), 37):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :])
        array = remembered([path], "a", lambda: noted["a"])
        assert np.array_equal(array, noted["a"])
        path.write_bytes(raw[:place])
        assert np.array_equal(remembered([path], "a", lambda: noted["a"]), noted["a"])


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"a": 1}', b"\xff\xfe", b"null"])
def test_a_damaged_or_foreign_file_is_replaced(tmp_path, content):
    path = tmp_path / "notes.json"
    path.write_bytes(content)
    assert remembered([path], "a", lambda: {"n": 1}) == {"n": 1}
    assert json.loads(path.read_bytes()) == {"a": {"n": 1}}


def test_the_first_place_that_can_be_written_is_taken(tmp_path):
    (tmp_path / "file").touch()
    paths = [tmp_path / "file" / "notes.json", tmp_path / "notes.json"]
    assert remembered(paths, "a", lambda: {"n": 1}) == {"n": 1}
    assert remembered(paths, "a", lambda: {"n": 2}) == {"n": 1}
    assert remembered(paths[:1], "a", lambda: {"n": 3}) == {"n": 3}


def test_the_newest_notes_stay(tmp_path):
    path = tmp_path / "notes.json"
    for number in range(NUM_KEPT + 3):
        remembered([path], str(number), lambda: {})
    assert [*json.loads(path.read_bytes())] == [str(n) for n in range(3, NUM_KEPT + 3)]
