"""A damaged checkpoint is named and never used; the one before it goes on."""

import io
import random
import zipfile
from contextlib import suppress

import pytest
import torch
from tiny_run import canonical, fingerprint, tiny_state

from storage import archive, checkpoint, run_folder
from system.errors import CheckpointError


@pytest.fixture
def model_path(tmp_path):
    path = tmp_path / "model_checkpoint_step_3.pt"
    checkpoint.save(path, tiny_state(3))
    return path


def test_a_checkpoint_cut_at_any_byte_is_refused(model_path):
    whole = model_path.read_bytes()
    assert not [size for size in range(len(whole)) if not is_refused(whole[:size])]


def test_a_flipped_bit_anywhere_is_found_or_changes_nothing(model_path):
    chance = random.Random(0)
    places = [(at, chance.randrange(8)) for at in range(3, model_path.stat().st_size, 7)]
    num_found = num_bits_found(model_path, places)
    assert num_found > len(places) / 3  # the rest is padding, dates and attributes


@pytest.mark.slow
def test_every_bit_that_flips_is_found_or_changes_nothing(model_path):
    size = model_path.stat().st_size
    assert num_bits_found(model_path, [(at, bit) for at in range(size) for bit in range(8)]) > size


def is_refused(content: bytes) -> bool:
    with suppress(Exception):
        archive.check(io.BytesIO(content))
        return False
    return True


def num_bits_found(path, places: list[tuple[int, int]]) -> int:
    """How many files with one bit flipped `load` refuses; AssertionError if one deceives it."""
    intact, expected = path.read_bytes(), canonical(checkpoint.load(path))
    num_found = 0
    for at, bit in places:
        damaged = bytearray(intact)
        damaged[at] ^= 1 << bit
        if is_refused(bytes(damaged)):  # in memory, what `load` does before it reads a tensor
            num_found += 1
            continue
        path.write_bytes(damaged)
        try:
            state = checkpoint.load(path)
        except CheckpointError:
            num_found += 1
        else:
            assert canonical(state) == expected, f"bit {bit} of byte {at} changed the state"
    return num_found


@pytest.mark.parametrize("kind", ["cut", "flipped", "empty", "moved away", "bad sector"])
def test_the_generation_before_a_damaged_one_goes_on_and_the_user_is_told(
    tmp_path, monkeypatch, kind
):
    for step in (3, 6):
        checkpoint.save(checkpoint.step_path(tmp_path, step), tiny_state(step))
    newest = checkpoint.step_path(tmp_path, 6)
    whole = newest.read_bytes()
    middle = whole.index(b"\x80\x02}")  # the pickle starts here
    damaged = {
        "cut": whole[:-1],
        "flipped": whole[:middle] + b"\x81" + whole[middle + 1 :],
        "empty": b"",
    }
    load = checkpoint.load

    def with_bad_sector(path):
        if path == newest:
            raise OSError(5, "Input/output error", str(path))
        return load(path)

    if kind == "moved away":
        newest.unlink()
    elif kind == "bad sector":
        monkeypatch.setattr(run_folder, "load", with_bad_sector)
    else:
        newest.write_bytes(damaged[kind])
    path, state, skipped = run_folder.newest_intact(tmp_path)
    assert (path, state["step"]) == (checkpoint.step_path(tmp_path, 3), 3)
    assert ["step_6" in reason for reason in skipped] == [True] * (kind != "moved away")


def test_only_damaged_checkpoints_are_an_error_and_never_a_silent_start_from_scratch(tmp_path):
    for step in (3, 6):
        checkpoint.step_path(tmp_path, step).write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"step_3.*step_6.*start afresh without --resume"):
        run_folder.newest_intact(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello", b"<html></html>", bytes(5000), b"PK\x05\x06"])
def test_other_files_called_pt_are_refused(tmp_path, content):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not an intact checkpoint"):
        checkpoint.load(path)


def test_nan_and_infinity_are_refused_and_their_tensor_is_named(tmp_path):
    for value in (float("nan"), float("inf"), -float("inf")):
        state = tiny_state()
        state["model_state_dict"]["final_norm.bias"][1] = value
        torch.save(state, tmp_path / "model.pt")
        with pytest.raises(CheckpointError, match=r"final_norm\.bias is not finite"):
            checkpoint.load(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"config": None}, "lacks config"),
        ({"config": {}}, "its config lacks seq_len"),
        ({"model_state_dict": {}}, "no weights"),
        ({"model_state_dict": []}, "lacks model_state_dict"),
        ({"extra": object}, "builtin.* object"),
        ({"history": {1, 2}}, "set"),
        ({"history": [1j]}, "complex"),
        ({"versions": 5}, "versions"),
        ([1, 2], "it holds list"),
        (torch.ones(2), "it holds Tensor"),
    ],
)
def test_states_of_another_structure_are_refused(tmp_path, change, complaint):
    is_a_part = isinstance(change, dict)
    torch.save(tiny_state(**change) if is_a_part else change, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=complaint):
        checkpoint.load(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("embedding_dim", 4, r"\(3, 2\), its config wants \(3, 4\)"),
        ("num_layers", 2, r"blocks\.1\..* None, its config wants"),
        ("num_layers", 10**9, "num_layers=1000000000"),
        ("seq_len", 2**70, "unreadable"),
        ("num_heads", 3, "not a multiple"),
        ("dropout", "much", "unreadable"),
    ],
)
def test_weights_that_do_not_fit_their_config_are_refused(tmp_path, key, value, complaint):
    state = tiny_state()
    state["config"] = {**state["config"], key: value}
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=complaint):
        checkpoint.load(tmp_path / "model.pt")


def test_a_checkpoint_from_a_gpu_of_another_torch_loads_here_and_says_so(tmp_path, capsys):
    path = tmp_path / "model.pt"
    state = tiny_state(config={**tiny_state()["config"], "device": "auto"})
    torch.save(state | {"versions": {"torch": "0.0.1+cu128"}}, tmp_path / "cpu.pt")
    with zipfile.ZipFile(tmp_path / "cpu.pt") as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            target.writestr(entry, content.replace(b"\x03\0\0\0cpu", b"\x06\0\0\0cuda:0"))
    state = checkpoint.load(path)
    assert state["model_state_dict"][checkpoint.EMBEDDING].device.type == "cpu"
    assert "0.0.1+cu128" in capsys.readouterr().err
    assert fingerprint(path) == fingerprint(tmp_path / "cpu.pt")
