"""A run that goes on from a checkpoint: the same bits, never another run's files."""

from pathlib import Path
from typing import Any

import pytest
import torch

from storage import checkpoint
from system.errors import CheckpointError, DataError
from training.resume import begin
from training.run import Run


def final_state(folder: Path) -> dict[str, Any]:
    return checkpoint.load(folder / checkpoint.FINAL_NAME)


def is_same(one: Any, other: Any) -> bool:
    """Whether two nests of tensors and plain values are equal to the last bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("step", [8, 16])
def test_a_resumed_run_ends_as_if_it_had_not_stopped(trained_in, step):
    whole = trained_in("whole", keep_checkpoints=9)
    path = checkpoint.step_path(whole, step)
    rest = trained_in("rest", resume=str(path))
    last = checkpoint.step_path(Path(), 24)
    ends = [checkpoint.load(folder / last) for folder in (whole, rest)]
    for key in ("model_state_dict", "optimizer_state_dict"):
        assert is_same(*(end[key] for end in ends)), key
    assert is_same(*(end["history"] for end in ends))
    assert is_same(*(final_state(folder)["model_state_dict"] for folder in (whole, rest)))


def test_resume_goes_on_from_the_newest_checkpoint_of_the_folder(trained_in):
    before = final_state(trained_in("whole"))
    again = trained_in("whole", resume=True, num_epochs=3, patience=0)
    assert final_state(again)["step"] == 36
    assert final_state(again)["run_id"] == before["run_id"]
    losses = [state["history"]["train_losses"][:24] for state in (before, final_state(again))]
    assert torch.equal(*losses)


def test_a_branch_from_an_older_checkpoint_keeps_what_it_saves(trained_in, tiny_config):
    folder = trained_in("run", keep_checkpoints=3)
    before = {path.name: path.read_bytes() for path in folder.glob("model_checkpoint_*")}
    run = Run({**tiny_config, "output_dir": "run", "keep_checkpoints": 1})
    begin(run, str(checkpoint.step_path(folder, 8)))
    run.update()
    assert checkpoint.load(run.save())["step"] == 9
    assert all((folder / name).read_bytes() == content for name, content in before.items())


def test_another_architecture_is_not_resumed(trained_in):
    path = checkpoint.step_path(trained_in("run", num_epochs=1), 8)
    with pytest.raises(CheckpointError, match=r"ffn_hidden_dim 32 -> 48\): set it back"):
        trained_in("other", resume=str(path), ffn_hidden_dim=48)


def test_another_text_is_not_resumed(trained_in):
    path = checkpoint.step_path(trained_in("run", num_epochs=1), 8)
    with Path("data.txt").open("a", encoding="utf-8") as text:
        text.write("The end.")
    with pytest.raises(DataError, match=r"another text \(.*put the old one back"):
        trained_in("other", resume=str(path))


@pytest.mark.parametrize("is_there", [True, False])
def test_the_best_model_of_another_run_never_becomes_final(trained_in, is_there):
    if is_there:
        trained_in("rest", num_epochs=1)  # leaves its best_model.pt
    worsens = {"learning_rate": 0.3, "eval_freq": 4, "patience": 2, "num_epochs": 8}
    saved = trained_in("first", **worsens).glob("model_checkpoint_step_*.pt")
    path = max(saved, key=lambda path: checkpoint.glance(path)[1])  # later than the best
    rest = trained_in("rest", **worsens, resume=str(path))
    old, final = checkpoint.load(path), final_state(rest)
    assert (final["run_id"], final["step"]) == (old["run_id"], old["step"])
    assert is_same(final["model_state_dict"], old["model_state_dict"])
