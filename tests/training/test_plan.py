"""The plan: sizes by a rule from speeds measured here, and a command that runs as it stands."""

import shlex
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_run import CONFIG, train_quickly

from storage import checkpoint
from system.errors import ConfigError
from training import plan
from training.capacity import num_parameters
from training.plan import Size, changes, context_for, measured
from training.settings import DEFAULTS
from training.wanted import options_from, wanted

CORPUS = SimpleNamespace(vocabulary=SimpleNamespace(size=3000))


@pytest.fixture
def machine(monkeypatch) -> None:
    """One whose speed is known: so many operations a second, and a little for each token."""
    monkeypatch.setattr(
        plan, "seconds_a_token", lambda config, rows, _: 1e-5 + num_parameters(config, rows) / 3e10
    )


def sizes_for(minutes: float, num_tokens: int) -> list[Size]:
    CORPUS.train_ids = range(num_tokens)
    return list(measured({**DEFAULTS, "max_minutes": minutes}, CORPUS, None))


def best_for(minutes: float, num_tokens: int) -> Size:
    return min(sizes_for(minutes, num_tokens), key=lambda size: size.excess)


def test_more_time_asks_for_larger_models(machine):
    sizes = [best_for(minutes, 10**8).num_parameters for minutes in (3, 30, 100)]
    assert sizes == sorted(set(sizes))


def test_sizes_are_measured_until_several_are_worse(machine):
    sizes = sizes_for(1, 10**6)
    excesses = [size.excess for size in sizes]
    assert len(sizes) < len(plan.SIZES)
    assert excesses.index(min(excesses)) == len(sizes) - 1 - plan.NUM_WORSE
    assert all(size.num_passes == pytest.approx(size.num_tokens / 10**6) for size in sizes)


@pytest.mark.parametrize("minutes", [1, 30, 240])
@pytest.mark.parametrize("num_tokens", [1400, 20_000, 110_866])
def test_little_text_asks_for_no_model_beyond_what_was_measured(machine, minutes, num_tokens):
    best = best_for(minutes, num_tokens)
    smallest = num_parameters({**DEFAULTS, **plan.shape(*plan.SIZES[0])}, 3000)
    assert best.num_parameters <= max(smallest, plan.MOST_A_TOKEN * num_tokens)


def test_sizes_are_tried_for_a_while_only(machine, monkeypatch):
    clock = SimpleNamespace(seconds=0.0)
    clock.monotonic = lambda: clock.seconds
    monkeypatch.setattr(plan, "time", clock)

    def slow(*_):
        clock.seconds += 0.3 * plan.MEASURING
        return 1e-4

    monkeypatch.setattr(plan, "seconds_a_token", slow)
    assert len(sizes_for(10**4, 10**9)) == 4


def test_a_context_that_somebody_chose_stays_and_little_text_has_a_short_one():
    config = {**DEFAULTS, "max_minutes": 1, "seq_len": 24, "stride": 5, "batch_size": 3}
    given = {"median_document": 300, "num_tokens": 10**6}
    assert context_for(config, **given, chosen=()) == {
        "seq_len": 128, "stride": 64, "batch_size": 8,
    }  # fmt: skip
    assert context_for(config, **given, chosen={"seq_len"}) == {
        "seq_len": 24, "stride": 12, "batch_size": 42,
    }  # fmt: skip
    kept = context_for(config, **given, chosen={"stride", "batch_size"})
    assert kept == {"seq_len": 128, "stride": 5, "batch_size": 3}
    assert context_for(config, **{**given, "num_tokens": 58}, chosen=())["seq_len"] == 16


def test_tokens_that_come_again_are_worth_less_and_at_last_nothing():
    new, twice, often, oftener = (
        Size(64, 1, 10**6, 1e6 * passes, passes).excess - Size(64, 1, 10**6, 1e6, 1).excess
        for passes in (1, 2, 200, 400)
    )
    fresh = Size(64, 1, 10**6, 2e6, 1).excess - Size(64, 1, 10**6, 1e6, 1).excess
    assert fresh < twice < new == 0
    assert often == pytest.approx(oftener, abs=1e-4)


def test_very_many_updates_become_fewer_larger_ones():
    batches = [
        changes(Size(64, 1, 1, 2000.0 * steps, 1), {"batch_size": 8})["batch_size"]
        for steps in (10, 4000, 4001, 20_000)
    ]
    assert batches == [8, 8, 16, 64]


def test_the_command_keeps_what_was_given_and_can_be_read_again():
    given = {"data": ["a b.txt", "c"], "plan": True, "max_minutes": 3.0, "seq_len": 9}
    words = shlex.split(wanted({}, given).command({"max_minutes": "3", "seq_len": 64}))
    options = options_from(words[2:], {})
    assert options == {"data": ["a b.txt", "c"], "max_minutes": 3, "seq_len": 64}
    mixed = shlex.split(wanted({}, {"data": {"a b": 1}}).command({}))
    assert options_from(mixed[2:], {}) == {"data": {"a b": 1}}
    edited = wanted({"find_lr": True}, {"seed": 3}).command({})
    assert options_from(shlex.split(edited)[2:], {}) == {"seed": 3, "find_lr": False}


CONTEXT_OF_THE_DEFAULT = {key: DEFAULTS[key] for key in ("seq_len", "stride", "batch_size")}


def test_a_plan_runs_as_it_stands(place, capsys, monkeypatch):
    monkeypatch.setattr(plan, "SIZES", ((32, 1), (64, 1)))
    given = {"plan": True, "data": "data.txt", **options_from(["--minutes", "0.02"], {})}
    train_quickly(given, **CONTEXT_OF_THE_DEFAULT)
    lines = capsys.readouterr().out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("plan "))
    assert len(lines) - start <= 12
    assert not list(place.glob("*.pt"))
    options = options_from(shlex.split(lines[-1])[3:], {})
    assert options["max_minutes"] == 0.02
    config = checkpoint.load(train_quickly({**options, "max_steps": 1}, warmup_steps=0))["config"]
    assert config["embedding_dim"] == 32 * config["num_heads"]
    assert np.log2(config["seq_len"]) % 1 == 0


@pytest.mark.parametrize(
    "given", [{"resume": True}, {"weights_path": "x"}, {"freeze": "blocks"}, {"adapter": "lora"}]
)
def test_a_plan_for_a_model_that_there_is_is_refused(given):
    with pytest.raises(ConfigError, match="plan is for a new model"):
        wanted({**CONFIG, **given}, {"plan": True, "max_minutes": 1})


def test_a_plan_without_a_time_is_refused():
    with pytest.raises(ConfigError, match="plan is for a time: give it as --max_minutes"):
        wanted({**CONFIG, "plan": True}, {})
