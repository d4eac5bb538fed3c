"""A run that goes on ends as if it had never stopped; changes are printed or refused."""

import math
from pathlib import Path

import pytest
import torch
from tiny_run import canonical, fingerprint, prepare, start_weights, tiny_state, train_quickly

from reports import plot
from storage import checkpoint, run_folder
from system.errors import CheckpointError, ConfigError, DataError
from system.process import Stopped
from training import begin, samples
from training.run import Run
from training.settings import DEFAULTS

HERE = Path()
LONGER = {"lr_schedule": "constant", "patience": 0}

pytestmark = pytest.mark.usefixtures("place")


def stop_before(monkeypatch, step: int, options: dict | None = None, **changes) -> None:
    """Lets the next training end as Ctrl-C ends it, ahead of the update with this number."""
    update = Run.update

    def stopping(run):
        if run.step == step:
            raise Stopped(2)
        update(run)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "update", stopping)
        with pytest.raises(Stopped):
            train_quickly(options, **changes)


def history_of(path: Path) -> dict:
    return checkpoint.load(path)["history"]


@pytest.mark.parametrize(("name", "steps"), [("adamw", (1, 7)), ("muon", (7,))])
def test_stopped_and_resumed_is_the_run_that_never_stopped(place, monkeypatch, name, steps):
    expected = fingerprint(train_quickly(optimizer=name))
    for step in steps:
        prepare(place / f"stopped at {step}")
        stop_before(monkeypatch, step, optimizer=name)
        assert fingerprint(train_quickly(resume=True, optimizer=name)) == expected


def test_more_epochs_after_the_end_are_the_longer_run(place):
    expected = fingerprint(train_quickly(num_epochs=5, **LONGER))
    prepare(place / "in two parts")
    train_quickly(num_epochs=3, **LONGER)
    assert fingerprint(train_quickly(num_epochs=5, resume=True, **LONGER)) == expected


def test_half_a_batch_accumulated_twice_goes_on_with_the_same_windows_and_masks(place, monkeypatch):
    whole = history_of(train_quickly())
    prepare(place / "in two parts")
    stop_before(monkeypatch, 7)
    parts = history_of(train_quickly(resume=True, batch_size=2, grad_accum_steps=3))
    assert torch.equal(parts["num_tokens"], whole["num_tokens"])
    # float32 sums in another order
    assert parts["train_losses"].tolist() == pytest.approx(whole["train_losses"].tolist(), rel=1e-4)


def test_a_bare_resume_takes_the_config_that_the_run_had(place, monkeypatch):
    given = {"num_epochs": 2, "ffn_hidden_dim": 20, "batch_size": 2}
    expected = fingerprint(train_quickly(given, num_epochs=9))
    prepare(place / "stopped")
    stop_before(monkeypatch, 5, options=given, num_epochs=9)
    path = train_quickly({"resume": True}, num_epochs=9)
    config = checkpoint.load(path)["config"]
    assert {key: config[key] for key in given} == given
    assert fingerprint(path) == expected


@pytest.mark.parametrize("named", ["nosuch/model_checkpoint_step_5.pt", "nosuch"])
def test_a_checkpoint_that_is_not_there_is_named_and_leaves_nothing(place, named):
    with pytest.raises(CheckpointError, match=f"no checkpoint to resume .{named}"):
        train_quickly({"resume": named})
    assert [path.name for path in place.glob("[!.]*")] == ["data.txt"]


def test_a_named_checkpoint_goes_on_in_its_own_folder(monkeypatch):
    stop_before(monkeypatch, 5, output_dir="a run")
    for named in ("a run/model_checkpoint_step_5.pt", "a run"):
        path = train_quickly({"resume": named})
        assert path == Path("a run/final_trained_model.pt")
    assert not list(HERE.glob("*.pt"))


def test_a_checkpoint_of_an_earlier_version_goes_on_in_its_order(place, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(begin, "NOW", "drawn")
        expected = fingerprint(train_quickly())
        prepare(place / "earlier")
        stop_before(monkeypatch, 7)
    path = checkpoint.step_path(HERE, 7)
    state = torch.load(path, weights_only=True)
    del state["script_config"], state["optimizer_groups"], state["order"]
    del state["history"]["num_tokens"], state["history"]["learning_rates"]
    for key in ("data", "optimizer", "use_pretrained", "model_name"):
        del state["config"][key]
    checkpoint.save(path, state)
    assert fingerprint(train_quickly(resume=True)) == expected


def test_a_mixture_goes_on_and_its_weights_stay(place, monkeypatch):
    (place / "more.txt").write_text((place / "data.txt").read_text()[::-1])
    mixture, others = {"data.txt": 2, "more.txt": 1}, {"data.txt": 1, "more.txt": 1}
    expected = fingerprint(train_quickly(data=mixture))
    stop_before(monkeypatch, 7, data=mixture)
    with pytest.raises(DataError, match=r"another text or val_data"):
        train_quickly(resume=True, data=others)
    assert fingerprint(train_quickly(resume=True, data=mixture)) == expected


def test_an_order_of_a_later_version_is_refused(monkeypatch):
    stop_before(monkeypatch, 5)
    path = checkpoint.step_path(HERE, 5)
    checkpoint.save(path, {**checkpoint.load(path), "order": "another"})
    with pytest.raises(CheckpointError, match=r"unknown order of batches \(.*: 'another'\)"):
        train_quickly(resume=True)


def test_what_changed_on_purpose_is_printed_as_old_and_new(capsys, monkeypatch):
    stop_before(monkeypatch, 5)
    path = train_quickly(resume=True, learning_rate=1e-4, eval_freq=6, dropout=0.0)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("changed")]
    assert [line.split()[1:] for line in lines] == [
        ["dropout", "0.2", "->", "0.0"],
        ["embedding_dropout", "0.2", "->", "0.0"],
        ["learning_rate", "0.0003", "->", "0.0001"],
        ["eval_freq", "4", "->", "6"],
    ]
    rates = history_of(path)["learning_rates"]
    assert rates[4] > 2e-4  # as it was
    assert rates[5] < 1e-4


def test_another_architecture_and_what_would_skip_or_repeat_windows_are_refused(monkeypatch):
    stop_before(monkeypatch, 5)
    before = fingerprint(checkpoint.step_path(HERE, 5))
    for key, value, said in (
        ("embedding_dim", 16, "embedding_dim 8 -> 16"),
        ("num_layers", 2, "num_layers 1 -> 2"),
        ("seq_len", 8, "seq_len 16 -> 8"),
        ("batch_size", 4, "batch_size x grad_accum_steps 6 -> 8"),
        ("grad_accum_steps", 1, "batch_size x grad_accum_steps 6 -> 3"),
        ("stride", 8, "stride 16 -> 8"),
        ("seed", 1, "seed 42 -> 1"),
        ("optimizer", "muon", "optimizer 'adamw' -> 'muon'"),
        ("val_fraction", 0.2, "val_fraction 0.1 -> 0.2"),
        ("share_unused_tokens", False, "share_unused_tokens True -> False"),
    ):
        with pytest.raises((CheckpointError, ConfigError), match=said):
            train_quickly(resume=True, **{key: value})
    assert fingerprint(checkpoint.step_path(HERE, 5)) == before


def test_a_resume_beyond_the_new_end_ends_at_once_with_the_final_files(capsys):
    expected = checkpoint.load(train_quickly())
    for change in ({"num_epochs": 1}, {"batch_size": 64}):
        Path(checkpoint.FINAL_NAME).unlink()
        state = checkpoint.load(train_quickly(resume=True, **change))
        assert "that is the end: raise num_epochs" in capsys.readouterr().out
        for key in ("model_state_dict", "history", "step"):
            assert canonical(state[key]) == canonical(expected[key])


def test_a_shorter_text_ends_a_run_at_once(place, capsys):
    train_quickly()
    text = place / "data.txt"
    text.write_text(text.read_text()[:1200])
    state = checkpoint.load(train_quickly(resume=True, allow_other_text=True))
    assert "that is the end" in capsys.readouterr().out
    assert state["step"] == 18


def test_on_another_text_losses_are_compared_with_those_on_it_alone(place, monkeypatch):
    first = history_of(train_quickly())
    path = place / "data.txt"
    words = path.read_text().split()
    path.write_text(" ".join(words[::-1]))
    worse = iter([9.0, 8.0, 8.5, 8.5, 8.5, 8.5, 8.5, 8.5])
    monkeypatch.setattr(samples, "measure", lambda run: (next(worse), ""))
    changes = {"num_epochs": 7, "allow_other_text": True, "patience": 3, "eval_freq": 1000}
    state = checkpoint.load(train_quickly({"resume": True}, **changes))
    found = state["history"]["evaluations"][len(first["evaluations"]) :]
    assert [done["step"] for done in found] == [18, 24]  # of the final model: the best on this text
    assert state["step"] == 24
    train_quickly({"resume": True}, **changes)


def test_a_run_that_patience_has_ended_says_so(place, capsys, monkeypatch):
    monkeypatch.setattr(samples, "measure", lambda run: (5.0 + run.step, ""))
    train_quickly(patience=1, eval_freq=2, warmup_steps=0, lr_schedule="constant")
    train_quickly({"resume": True}, patience=1, eval_freq=2, warmup_steps=0, lr_schedule="constant")
    assert "that is the end: raise patience to train on" in capsys.readouterr().out


def test_another_text_is_refused_with_both_hashes_unless_the_config_allows_it(place, monkeypatch):
    stop_before(monkeypatch, 5)
    path = place / "data.txt"
    path.write_text(path.read_text() + "The cat sat on the mat, and slept for a very long time.")
    with pytest.raises(DataError, match=r"is of [0-9a-f]{12}, this is [0-9a-f]{12}") as caught:
        train_quickly(resume=True)
    assert caught.value.exit_code == 3
    assert train_quickly(resume=True, allow_other_text=True).exists()


def test_another_tokenizer_is_refused(monkeypatch):
    stop_before(monkeypatch, 5)
    monkeypatch.setattr(begin, "TABLE_SHA256", "0" * 64)
    with pytest.raises(CheckpointError, match="another tokenizer"):
        train_quickly(resume=True)


def test_a_float16_run_stopped_before_its_first_real_update_goes_on(monkeypatch):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    monkeypatch.setattr("system.machine.Machine.gradient_scaler", lambda machine: scaler)
    stop_before(monkeypatch, 2, precision="float16")
    state = checkpoint.load(checkpoint.step_path(HERE, 2))
    assert (state["optimizer_state_dict"], state["history"]["num_skipped"]) == ({}, 2)
    assert len(history_of(train_quickly(resume=True))["train_losses"]) == 18


def test_moments_of_another_shape_are_refused(place, monkeypatch):
    stop_before(monkeypatch, 5)
    path = checkpoint.step_path(place, 5)
    state = torch.load(path, weights_only=True)
    state["optimizer_state_dict"][0]["exp_avg"] = torch.zeros(3, 3)
    checkpoint.save(path, state)
    with pytest.raises(CheckpointError, match="exp_avg of parameter 0 has another shape"):
        train_quickly(resume=True)


@pytest.mark.parametrize("names", [("adamw", "muon"), ("muon", "adamw")])
def test_another_optimizer_starts_anew_where_the_config_allows_it(monkeypatch, capsys, names):
    stop_before(monkeypatch, 5, optimizer=names[0])
    state = history_of(train_quickly(resume=True, optimizer=names[1], allow_other_text=True))
    assert len(state["train_losses"]) == 18
    assert f"changed   optimizer {names[0]!r} -> {names[1]!r}" in capsys.readouterr().out


@pytest.mark.parametrize("names", [("adamw", "muon"), ("muon", "adamw")])
def test_another_optimizer_has_the_values_that_a_new_run_of_it_has(monkeypatch, names):
    free = {key: DEFAULTS[key] for key in ("weight_decay", "dropout", "warmup_steps")}
    stop_before(monkeypatch, 5, optimizer=names[0], **free)
    other = {"resume": True, "optimizer": names[1], "allow_other_text": True}
    found = checkpoint.load(train_quickly(other, **free))["config"]
    new = checkpoint.load(train_quickly({"optimizer": names[1], "output_dir": "new"}, **free))
    same = ("learning_rate", "weight_decay", "dropout", "embedding_dropout")
    assert {key: found[key] for key in same} == {key: new["config"][key] for key in same}


def test_another_optimizer_tunes_published_weights_at_its_own_gentle_values(place, monkeypatch):
    start = {"weights_path": str(start_weights(place / "start")), "optimizer": "muon"}
    stop_before(monkeypatch, 4, start)
    other = {"resume": True, "optimizer": "adamw", "allow_other_text": True}
    assert checkpoint.load(train_quickly(other))["config"]["learning_rate"] == 1e-5


def test_a_dropout_written_on_resume_is_for_all_places_as_it_was(monkeypatch):
    stop_before(monkeypatch, 5)
    config = checkpoint.load(train_quickly({"resume": True, "dropout": 0.4}))["config"]
    assert (config["dropout"], config["embedding_dropout"]) == (0.4, 0.4)


def test_a_long_run_by_rules_repeats_to_the_bit_past_where_its_pace_is_told(place, monkeypatch):
    free = {key: DEFAULTS[key] for key in ("weight_decay", "dropout")}
    long = {"optimizer": "muon", "num_epochs": 9, "patience": 0, **free}
    expected = fingerprint(train_quickly(**long))
    prepare(place / "stopped")
    stop_before(monkeypatch, 29, **long)
    assert fingerprint(train_quickly(resume=True, **long)) == expected


def test_a_warm_up_that_the_rest_of_a_run_has_no_time_for_is_refused(monkeypatch):
    stop_before(monkeypatch, 5)
    with pytest.raises(ConfigError, match=r"warmup_steps=500 is more than the run's 12 steps"):
        train_quickly({"resume": True, "max_steps": 12, "warmup_steps": 500})


def test_a_damaged_newest_file_never_costs_the_intact_ones(place, monkeypatch, capsys):
    stop_before(monkeypatch, 7)
    newest = checkpoint.step_path(place, 7)
    newest.write_bytes(newest.read_bytes()[:-1])
    train_quickly(resume=True, keep_checkpoints=1, num_epochs=2, save_freq=100)
    assert newest.name in capsys.readouterr().err
    assert run_folder.newest_intact(place)[1]["step"] == 12


def test_what_is_no_checkpoint_to_resume_is_refused(place):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        train_quickly(resume="none.pt")
    train_quickly(num_epochs=1)
    with pytest.raises(CheckpointError, match="lacks optimizer_state_dict"):
        train_quickly(resume=checkpoint.FINAL_NAME)


def test_a_new_run_moves_the_files_of_the_earlier_one_aside(monkeypatch, capsys):
    first = fingerprint(train_quickly(num_epochs=1))
    run_id = checkpoint.load(Path(checkpoint.FINAL_NAME))["run_id"]
    capsys.readouterr()
    train_quickly(num_epochs=1, seed=7)
    [aside] = Path("earlier_runs").iterdir()
    assert run_id.startswith(aside.name)
    assert str(aside) in capsys.readouterr().out
    assert fingerprint(aside / checkpoint.FINAL_NAME) == first
    assert (aside / checkpoint.BEST_NAME).exists()
    ids = {checkpoint.load(path)["run_id"] for path in HERE.glob("*.pt")}
    assert len(ids) == 1
    assert run_id not in ids


def test_a_new_run_says_how_to_continue_the_unfinished_one(place, monkeypatch, capsys):
    expected = checkpoint.load(train_quickly())["model_state_dict"]
    prepare(place / "unfinished")
    stop_before(monkeypatch, 5)
    train_quickly(num_epochs=1)
    [path] = Path("earlier_runs").glob("*/model_checkpoint_step_5.pt")
    assert f"--resume {path} continues it" in capsys.readouterr().out
    final = checkpoint.load(train_quickly({"resume": str(path)}))["model_state_dict"]
    assert canonical(final) == canonical(expected)
    assert path.parent.joinpath(checkpoint.FINAL_NAME).exists()


def test_a_branch_keeps_what_the_run_had_saved_and_the_best_model_before_it(place, monkeypatch):
    train_quickly(keep_checkpoints=9)
    kept = {path.name: fingerprint(path) for path in HERE.glob("model_checkpoint_step_*.pt")}
    best_loss = checkpoint.load(Path(checkpoint.BEST_NAME))["history"]["evaluations"][-1]["loss"]
    path = train_quickly(resume="model_checkpoint_step_6.pt", learning_rate=1e-5)
    [aside] = Path("earlier_runs").iterdir()
    assert {name: fingerprint(aside / name) for name in kept} == kept
    state = checkpoint.load(path)
    assert best_loss < state["history"]["evaluations"][-1]["loss"] < math.inf
    assert len({checkpoint.load(path)["run_id"] for path in HERE.glob("*.pt")}) == 1


def test_a_branch_that_ends_at_once_leaves_a_whole_folder(place, monkeypatch):
    train_quickly(keep_checkpoints=9)
    drawn = []
    monkeypatch.setattr(plot, "plot_history", lambda path, *shown: drawn.append(path))
    train_quickly(resume="model_checkpoint_step_6.pt", num_epochs=1)
    names = {path.name for path in HERE.glob("*.pt")}
    assert names >= {checkpoint.FINAL_NAME, "model_checkpoint_step_6.pt"}
    assert drawn


@pytest.mark.parametrize("is_there", [True, False])
def test_the_best_model_of_another_run_never_becomes_final(place, capsys, is_there):
    worsens = {"learning_rate": 3.0, "warmup_steps": 0, "patience": 2, "num_epochs": 8}
    train_quickly(**worsens)
    newest, _, _ = run_folder.newest_intact(HERE)
    best = Path(checkpoint.BEST_NAME)
    expected = checkpoint.load(best)["step"]
    if is_there:
        checkpoint.save(best, tiny_state(1, run_id="b" * 32, history={"evaluations": []}))
    else:
        best.unlink()
    state = checkpoint.load(train_quickly(**worsens, resume=str(newest)))
    assert f"no {checkpoint.BEST_NAME} of this run" in capsys.readouterr().err
    assert state["step"] > expected
