"""Several seeds one after the other: each a run of its own, and what they differ by."""

import re
from pathlib import Path
from statistics import mean, stdev

import pytest
from tiny_run import CONFIG, canonical, prepare, start_weights, train_quickly

from reports.history import History
from storage import checkpoint
from system.errors import ConfigError
from system.process import Stopped
from training import seeds
from training.rules import left_to_rules
from training.run import Run
from training.settings import AUTO, DEFAULTS
from training.wanted import wanted


def best_of(folder: str) -> float:
    state = checkpoint.load(Path(folder))
    return History.from_state_dict(state["history"]).best.loss


def test_each_seed_is_the_run_that_it_is_alone_and_the_spread_is_said(place, capsys):
    train_quickly({"seeds": 3, "seed": 7}, max_steps=5, output_dir="runs")
    losses = [best_of(f"runs/seed_{seed}") for seed in (7, 8, 9)]
    assert len(set(losses)) == 3
    said = re.search(
        r"seeds .* mean ([\d.]+), standard deviation ([\d.]+)", capsys.readouterr().out
    )
    expected = [f"{value:.3f}" for value in (mean(losses), stdev(losses))]
    assert list(said.groups()) == expected
    prepare(place / "alone")
    alone = checkpoint.load(train_quickly(seed=8, max_steps=5))
    among = checkpoint.load(place / "runs" / "seed_8")
    assert canonical(among["model_state_dict"]) == canonical(alone["model_state_dict"])


def test_resumed_the_seeds_go_on_where_they_were(place):
    train_quickly({"seeds": 2}, max_steps=3)
    train_quickly({"seeds": 3, "resume": True, "max_steps": 6})
    steps = [checkpoint.load(Path(f"seed_{s}/model_checkpoint_step_6.pt")) for s in (42, 43, 44)]
    assert [len(state["history"]["train_losses"]) for state in steps] == [6, 6, 6]


AS_IN_THE_DICT = {"optimizer": "muon", "learning_rate": 3e-4, "weight_decay": 0.1, "dropout": 0.2}


@pytest.mark.parametrize("given", [{"dropout": 0.3, "num_layers": 2}, AS_IN_THE_DICT])
def test_a_seed_that_had_not_begun_is_given_what_the_others_were(place, monkeypatch, capsys, given):
    stop_in_the_first(monkeypatch, {"max_steps": 4, **given})
    assert "with --resume goes on with all 2" in capsys.readouterr().out
    own = configs_of_two({"resume": True, "max_steps": 5})
    assert own[0] == own[1]
    assert {key: own[0][key] for key in given} == given
    assert own[0]["max_steps"] == 5


def test_a_seed_that_had_not_begun_starts_from_the_weights_of_the_others(place, monkeypatch):
    given = {"weights_path": str(start_weights(place / "start")), "max_steps": 4}
    stop_in_the_first(monkeypatch, given)
    own = configs_of_two({**given, "resume": True})
    assert own[0] == own[1]
    assert own[0]["weights_path"] == given["weights_path"]
    first, second = (
        checkpoint.load(Path(f"seed_{seed}"))["history"]["evaluations"][0] for seed in (42, 43)
    )
    assert first == second  # before any update


def test_what_rules_had_not_decided_is_left_to_them_for_a_seed_that_had_not_begun(
    place, monkeypatch
):
    free = {key: DEFAULTS[key] for key in ("weight_decay", "dropout")}
    given = {"optimizer": "muon", "max_minutes": 5, "max_steps": 24, "warmup_steps": 0}
    stop_in_the_first(monkeypatch, given, **free)
    of_first = checkpoint.load(checkpoint.step_path("seed_42", 2))["config"]
    assert of_first["embedding_dropout"] == AUTO
    options = seeds.options_of_each(wanted({**CONFIG, **free}, {"seeds": 2, "resume": True}))[1]
    new = left_to_rules({**DEFAULTS, **CONFIG, **free, **options}, set(options))
    undecided = ("learning_rate", "weight_decay", "dropout", "embedding_dropout")
    assert [new[key] for key in undecided] == [of_first["learning_rate"], AUTO, AUTO, AUTO]


def stop_in_the_first(monkeypatch, given, **changes) -> None:
    """Begins two trainings, and stops after two updates of the first."""
    update = Run.update

    def stopping(run):
        if run.step == 2:
            raise Stopped(2)
        update(run)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "update", stopping)
        with pytest.raises(Stopped):
            train_quickly({"seeds": 2, **given}, **changes)


def configs_of_two(given) -> list[dict]:
    """What two trainings had that go on, but for their seeds and folders."""
    train_quickly({"seeds": 2, **given})
    states = [checkpoint.load(Path(f"seed_{seed}")) for seed in (42, 43)]
    return [{**state["config"], "seed": 0, "output_dir": ""} for state in states]


def test_a_question_is_answered_once_for_all_seeds(place, capsys):
    assert train_quickly({"estimate": True}, seeds=3) == Path()
    assert capsys.readouterr().out.count("devices ") == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": 2**31 - 2, "seeds": 3}, "seed=2147483648 is not"),
        ({"seeds": 2, "resume": "data.txt"}, "goes on with its own seed"),
        ({"seeds": 0}, "seeds=0 is not a whole number >= 1"),
    ],
)
def test_seeds_that_cannot_be_are_refused_before_any_work(place, given, message):
    with pytest.raises(ConfigError, match=message):
        train_quickly(given)
    assert [path.name for path in place.iterdir()] == ["data.txt"]
