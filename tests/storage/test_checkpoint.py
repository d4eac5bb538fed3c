"""The file format: what comes back is what was saved, and a file that is not ours is refused."""

from pathlib import Path
from typing import Any

import numpy as np
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


@pytest.mark.parametrize("name", ["final_trained_model.pt", "~/final_trained_model.pt", "."])
def test_load_model_gives_the_saved_model_in_evaluation_mode(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "final_trained_model.pt"
    saved(tmp_path).rename(path)
    original = checkpoint.build_model(CONFIG, 11)
    original.load_state_dict(state_of()["model_state_dict"])
    model = checkpoint.load_model(name)
    tokens = torch.arange(7)[None]
    assert torch.equal(model(tokens), original.eval()(tokens))
    assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("value", [{1, 2}, np.float64(1), Path("a")], ids=repr)
def test_what_no_file_can_hold_is_named_before_it_is_written(tmp_path, value):
    with pytest.raises(TypeError, match=r"^optimizer_state_dict\.0\.step is a "):
        checkpoint.save(tmp_path / "model.pt", optimizer_of({"step": value}))
    assert not list(tmp_path.iterdir())


def optimizer_of(moments: dict[str, Any]) -> dict[str, Any]:
    return state_of() | {"optimizer_state_dict": {0: moments}}


def test_the_state_of_any_optimizer_comes_back(tmp_path):
    kinds = (torch.uint8, torch.int8, torch.int32, torch.bfloat16, torch.bool)
    tensors = {str(kind): torch.ones(3, dtype=kind) for kind in kinds}
    for number, moments in enumerate(
        ({}, {"step": 3, "none": None}, {"runs": [(1, 0.5)]}, tensors)
    ):
        path = tmp_path / f"{number}.pt"
        checkpoint.save(path, optimizer_of(moments))
        assert is_same(checkpoint.load(path)["optimizer_state_dict"], {0: moments})


def test_building_a_model_from_a_state_draws_no_random_numbers_and_leaves_no_part_out(monkeypatch):
    build = checkpoint.build_transformer

    def with_a_table(*sizes, **more):  # as an attention variant may have, in no file
        model = build(*sizes, **more)
        model.register_buffer("table", torch.arange(3.0).exp(), persistent=False)
        model.register_buffer("counts", torch.arange(3))
        return model

    monkeypatch.setattr(checkpoint, "build_transformer", with_a_table)
    state = state_of()
    checkpoint.check_weights(state["config"], state["model_state_dict"])
    before = torch.random.get_rng_state()
    model = checkpoint.model_from(state)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(model.table, torch.arange(3.0).exp())
    assert all(torch.equal(model.state_dict()[k], v) for k, v in state["model_state_dict"].items())


# ---------------------------------------------------------------- files that are not ours


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load_model(path)
    assert caught.value.exit_code == 4
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_missing_file_is_an_errand_to_train(tmp_path):
    assert "train one with python train.py" in refused(tmp_path / "final_trained_model.pt")
