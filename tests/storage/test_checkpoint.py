"""The file format: what comes back is what was saved, and a file that is not ours is refused."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from storage import checkpoint
from system.errors import CheckpointError

CONFIG = {
    "seq_len": 7,
    "embedding_dim": 12,
    "num_layers": 2,
    "num_heads": 3,
    "dropout": 0.5,
    "ffn_hidden_dim": 20,
}
PLAIN = {torch.Tensor, str, int, float, bool, type(None)}


def state_of(*, step: int = 3, run_id: str = "ours", vocab_size: int = 11) -> dict[str, Any]:
    torch.manual_seed(step)
    model = checkpoint.build_model(CONFIG, vocab_size)
    return {
        "config": CONFIG,
        "model_state_dict": model.state_dict(),
        "step": step,
        "run_id": run_id,
        "text_sha256": "a" * 64,
    }


def saved(folder: Path, **changed: Any) -> Path:
    state = state_of(**changed)
    path = checkpoint.step_path(folder, state["step"])
    checkpoint.save(path, state)
    return path


def is_same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other


def kinds_in(value: Any) -> set[type]:
    """The types of all the values in a nest of dicts and lists."""
    if type(value) is dict:
        return kinds_in(list(value.keys())) | kinds_in(list(value.values()))
    if type(value) is list:
        return set().union(*map(kinds_in, value))
    return {type(value)}


# ---------------------------------------------------------------- save and load


def test_a_state_comes_back_bit_for_bit_with_the_versions_that_wrote_it(tmp_path):
    state = state_of()
    state |= {"half": torch.rand(3).half(), "nothing": None, "list": [1, 0.1 + 0.2, True, "雪"]}
    path = tmp_path / "model.pt"
    checkpoint.save(path, state)
    loaded = checkpoint.load(path)
    versions = loaded.pop("versions")
    loaded["model_state_dict"] = dict(loaded["model_state_dict"])
    assert is_same({**state, "model_state_dict": dict(state["model_state_dict"])}, loaded)
    assert versions["torch"] == torch.__version__
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.parametrize("name", ["final_trained_model.pt", "model_checkpoint_step_24.pt"])
def test_a_runs_files_hold_plain_values_only(trained, name):
    state = torch.load(trained.folder / name)
    assert kinds_in(state) <= PLAIN
    assert {"config", "model_state_dict"} <= state.keys()


def test_load_model_gives_the_saved_model_in_evaluation_mode(tmp_path):
    path = saved(tmp_path)
    original = checkpoint.build_model(CONFIG, 11)
    original.load_state_dict(state_of()["model_state_dict"])
    model = checkpoint.load_model(path)
    tokens = torch.arange(7)[None]
    assert torch.equal(model(tokens), original.eval()(tokens))
    assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_building_a_model_from_a_state_draws_no_random_numbers():
    state = state_of()
    before = torch.random.get_rng_state()
    checkpoint.model_from(state)
    assert torch.equal(torch.random.get_rng_state(), before)


# ---------------------------------------------------------------- files that are not ours


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load_model(path)
    assert caught.value.exit_code == 4
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_missing_file_is_an_errand_to_train(tmp_path):
    assert "train one with python train.py" in refused(tmp_path / "final_trained_model.pt")


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", bytes(5000), b"PK\x03\x04"])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    cause = f"only {len(content)} bytes" if len(content) < 5 else "not a zip archive"
    assert cause in refused(path)


@pytest.mark.parametrize(
    "value", [5, None, [1, 2], "text", torch.ones(2), {}, {"config": CONFIG}], ids=repr
)
def test_a_torch_file_of_something_else_is_refused(tmp_path, value):
    path = tmp_path / "model.pt"
    torch.save(value, path)
    cause = "it lacks" if isinstance(value, dict) else f"it holds {type(value).__name__}"
    assert cause in refused(path)


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        ({"embedding_dim": 24}, "weight (11, 12), its config wants (11, 24)"),
        ({"num_layers": 1}, "blocks.1.attention_norm.weight (12,), its config wants None"),
        ({"num_heads": 5}, "embedding_dim=12 is not a multiple of num_heads=5"),
    ],
)
def test_weights_that_do_not_fit_their_config_are_refused(tmp_path, changed, cause):
    path = tmp_path / "model.pt"
    checkpoint.save(path, {**state_of(), "config": {**CONFIG, **changed}})
    assert cause in refused(path)


@pytest.mark.parametrize(
    ("emptied", "cause"), [("config", "its config lacks"), ("model_state_dict", "no weights")]
)
def test_a_config_or_weights_without_entries_are_refused(tmp_path, emptied, cause):
    path = tmp_path / "model.pt"
    checkpoint.save(path, {**state_of(), emptied: {}})
    assert cause in refused(path)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99, 0.9999])
def test_a_torn_file_is_refused(tmp_path, part):
    path = saved(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    assert "cut short" in refused(path)


def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path):
    path = saved(tmp_path)
    whole, original = path.read_bytes(), checkpoint.load(path)
    choose = random.Random(0)
    num_found = 0
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[choose.randrange(len(whole))] ^= 1 << choose.randrange(8)
        path.write_bytes(damaged)
        try:
            assert is_same(checkpoint.load(path), original)
        except CheckpointError:
            num_found += 1
    assert num_found > 20  # half of the file is tensors, the rest zip padding and names


def test_code_in_a_file_is_never_run(tmp_path):
    class Malicious:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path.touch, (tmp_path / "was run",)

    path = tmp_path / "model.pt"
    torch.save({**state_of(), "history": Malicious()}, path)
    refused(path)
    assert not (tmp_path / "was run").exists()
