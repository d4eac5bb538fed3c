"""The file format: what comes back is what was saved, and a file that is not ours is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import canonical, tiny_state

from storage import checkpoint
from system.errors import CheckpointError

KINDS = (torch.uint8, torch.int8, torch.int32, torch.float16, torch.bfloat16, torch.bool)


def test_a_state_comes_back_bit_for_bit_with_the_versions_that_wrote_it(tmp_path):
    state = tiny_state(
        plain=[1, 0.1 + 0.2, True, "雪", None, (1, 0.5), {}],
        optimizer_state_dict={
            0: {"step": 3} | {str(kind): torch.ones(3, dtype=kind) for kind in KINDS}
        },
    )
    path = tmp_path / "model.pt"
    checkpoint.save(path, state)
    loaded = checkpoint.load(path)
    assert loaded.pop("versions")["torch"] == torch.__version__
    assert canonical(loaded) == canonical(state)
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.parametrize("name", ["final_trained_model.pt", "~/final_trained_model.pt", "."])
def test_load_model_gives_the_saved_model_in_evaluation_mode(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    state = tiny_state()
    checkpoint.save("final_trained_model.pt", state)
    original = checkpoint.build_model(state["config"], 3)
    original.load_state_dict(state["model_state_dict"])
    model = checkpoint.load_model(name)
    tokens = torch.arange(2)[None]
    assert torch.equal(model(tokens), original.eval()(tokens))
    assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("value", [{1, 2}, np.float64(1), Path("a")], ids=repr)
def test_what_no_file_can_hold_is_named_before_it_is_written(tmp_path, value):
    state = tiny_state(optimizer_state_dict={0: {"step": value}})
    with pytest.raises(TypeError, match=r"^optimizer_state_dict\.0\.step is a "):
        checkpoint.save(tmp_path / "model.pt", state)
    assert not list(tmp_path.iterdir())


def test_building_a_model_from_a_state_draws_no_random_numbers_and_leaves_no_part_out(monkeypatch):
    build = checkpoint.build_transformer

    def with_a_table(*sizes, **more):  # as an attention variant may have, in no file
        model = build(*sizes, **more)
        model.register_buffer("table", torch.arange(3.0).exp(), persistent=False)
        model.register_buffer("counts", torch.arange(3))
        return model

    monkeypatch.setattr(checkpoint, "build_transformer", with_a_table)
    state = tiny_state()
    checkpoint.check_weights(state["config"], state["model_state_dict"])
    before = torch.random.get_rng_state()
    model = checkpoint.model_from(state)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(model.table, torch.arange(3.0).exp())
    assert canonical(dict(model.state_dict())) == canonical(state["model_state_dict"])


def test_a_missing_file_is_an_errand_to_train(tmp_path):
    path = tmp_path / "final_trained_model.pt"
    with pytest.raises(CheckpointError, match="train one with") as caught:
        checkpoint.load_model(path)
    assert caught.value.exit_code == 4
    assert str(path) in str(caught.value)
