"""Checkpoints written tensor by tensor, against those that torch.save writes."""

import gc
import math
from pathlib import Path
from weakref import ref

import pytest
import torch
from tiny_model import SIZES, clear_model
from torch import Tensor

from storage import archive, checkpoint, streamed
from storage.streamed import Later
from system.errors import NonFiniteError
from system.files import write_durably


def write(path: Path, state: dict) -> None:
    write_durably(path, lambda file: streamed.save(state, file))


def test_the_file_is_as_torch_writes_it(tmp_path):
    torch.manual_seed(0)
    weights = {
        f"w{i}": torch.randn(shape) for i, shape in enumerate([(3, 5), (1,), (70, 9), (0, 4), ()])
    }
    table = torch.arange(40, dtype=torch.int64).view(5, 8)
    rest = {
        "config": {"a": 1, "b": 0.5},
        "list": [table, 2.5, (table.T,)],
        "bits": table.bfloat16(),
    }
    later = {name: Later(w.shape, w.clone) for name, w in weights.items()}
    write(tmp_path / "ours.pt", {**rest, "weights": later})
    torch.save({**rest, "weights": weights}, tmp_path / "torch.pt")
    ours, theirs = (torch.load(tmp_path / f"{name}.pt") for name in ("ours", "torch"))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    for mapped in (False, True):
        again = torch.load(tmp_path / "ours.pt", mmap=mapped, weights_only=True)
        assert torch.equal(again["weights"]["w2"], weights["w2"])
    with (tmp_path / "ours.pt").open("rb") as file:
        archive.check(file)


def test_one_tensor_is_there_at_a_time(tmp_path):
    made: list[ref] = []

    def make() -> Tensor:
        gc.collect()
        assert sum(one() is not None for one in made) <= 1  # the last one, at most
        tensor = torch.ones(1000)
        made.append(ref(tensor))
        return tensor

    write(tmp_path / "it.pt", {f"w{i}": Later(torch.Size([1000]), make) for i in range(5)})
    assert len(made) == 5


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
def test_damage_is_found_in_it(tmp_path, place):
    path = tmp_path / "it.pt"
    write(path, {"w": Later(torch.Size([5000]), lambda: torch.ones(5000))})
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.write_bytes(content)
    with pytest.raises(Exception, match="CRC"), path.open("rb") as file:
        archive.check(file)


def test_what_cannot_be_made_leaves_the_file_before_as_it_was(tmp_path):
    path = tmp_path / "it.pt"
    write(path, {"w": torch.ones(3)})

    def fail() -> Tensor:
        raise MemoryError("no room")

    with pytest.raises(MemoryError):
        write(path, {"w": Later(torch.Size([3]), fail)})
    assert torch.equal(torch.load(path)["w"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]


def later_state() -> dict:
    """The state of a model, its weights to be made."""
    weights = {name: Later(w.shape, w.clone) for name, w in clear_model().state_dict().items()}
    return {"config": SIZES, "model_state_dict": weights}


def test_a_checkpoint_is_saved_from_what_is_made_later(tmp_path):
    checkpoint.save(tmp_path / "it.pt", later_state())
    loaded = checkpoint.load(tmp_path / "it.pt")["model_state_dict"]
    torch.testing.assert_close(loaded, dict(clear_model().state_dict()), rtol=0, atol=0)


def test_what_is_not_finite_when_it_is_made_is_refused(tmp_path):
    state = later_state()
    shape = state["model_state_dict"]["final_norm.bias"].shape
    state["model_state_dict"]["final_norm.bias"] = Later(shape, lambda: torch.full(shape, math.nan))
    with pytest.raises(NonFiniteError, match="diverged"):
        checkpoint.save(tmp_path / "it.pt", state)
    assert list(tmp_path.iterdir()) == []
