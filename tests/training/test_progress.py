"""Where a run ends: by steps, tokens or minutes, whatever the machine does meanwhile."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_run import CONFIG, prepare, train_quickly

import train
from reports import html
from reports.history import History
from storage import checkpoint
from system.process import Stopped
from training import progress, samples, store, wanted
from training.learner import Learner
from training.processes import Processes
from training.progress import EXIT_SECONDS, Progress, limits_of
from training.run import NUM_PACED, Run
from training.settings import DEFAULTS

BATCHES = SimpleNamespace(dataset=range(10), batch_size=4, num_per_epoch=3)  # 4, 4 and 2 windows
WITH_TIME = {"max_minutes": 2, "save_freq": 40, "eval_freq": 50, "patience": 0, "num_epochs": 1}


class Clock:
    """A clock that goes on as it is told to; from `slow_from` on everything takes twice as long."""

    def __init__(self, slow_from: float = math.inf) -> None:
        self.start = self.seconds = 1000.0
        self.slow_from = self.start + slow_from

    def monotonic(self) -> float:
        return self.seconds

    @property
    def passed(self) -> float:
        return self.seconds - self.start

    def after(self, function: Callable, cost: float) -> Callable:
        """The function, taking so many seconds."""

        def slow(*arguments, **named):
            self.seconds += cost * (1 + (self.seconds >= self.slow_from))
            return function(*arguments, **named)

        return slow


@pytest.fixture
def clock(place, monkeypatch) -> Clock:
    """The only clock: it knows what start-up, updates, evaluations and writes cost."""
    clock = Clock()
    for module in (progress, wanted, train):
        monkeypatch.setattr(module, "time", clock)
    for owner, name, cost in (
        (train, "make_folder", 5.0),
        (Learner, "update", 0.4),
        (Learner, "seconds_per_update", -0.8),  # its two updates are no part of this
        (samples, "measure", 3.0),
        (Run, "next_batch", 0.02),
        (checkpoint, "save", 1.0),
        (store, "save", 2.0),
    ):
        monkeypatch.setattr(owner, name, clock.after(getattr(owner, name), cost))
    return clock


def history_of(path: Path) -> History:
    return History.from_state_dict(checkpoint.load(path)["history"])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 15),
        ({"max_steps": 7}, 7),
        ({"max_steps": 70}, 15),
        ({"max_tokens": 1}, 1),
        ({"max_tokens": 8 * 9}, 3),  # a whole epoch is nine windows of eight, and a tenth
        ({"max_tokens": 8 * 10}, 3),
        ({"max_tokens": 8 * 10 + 1}, 4),
        ({"max_tokens": 8 * 16, "max_steps": 6}, 5),
        ({"max_tokens": 8 * 16, "max_steps": 4}, 4),
        ({"max_minutes": 2}, math.inf),
        ({"max_minutes": 0.1, "max_steps": 70}, 70),
    ],
)
def test_the_nearest_limit_in_steps_is_the_last_step(changes, expected):
    limits = limits_of({**DEFAULTS, "seq_len": 8, **changes}, BATCHES)
    assert min(limits.values()) == expected


def test_a_limit_is_the_horizon_of_the_schedule(place):
    short = history_of(train_quickly(max_steps=7))
    assert len(short.train_losses) == 7
    assert short.learning_rates[-1] == pytest.approx(0.1 * CONFIG["learning_rate"])
    prepare(place / "in tokens")
    again = history_of(train_quickly(max_tokens=16 * 34 + 1))
    assert again == short


def rates_at(clock: Clock, path: Path) -> list[float]:
    """The rates of a run that has just ended, which is checked to have ended in time."""
    assert clock.passed == pytest.approx(120, abs=4)
    rates = history_of(path).learning_rates
    assert rates[0] > 0.98 * CONFIG["learning_rate"]
    assert rates[-1] < 0.08 * CONFIG["learning_rate"]
    assert rates == sorted(rates, reverse=True)
    return rates


@pytest.mark.parametrize("slow_from", [math.inf, 0.0, 60.0, 100.0])
def test_two_minutes_end_after_two_minutes_however_busy_the_machine_gets(clock, slow_from):
    clock.slow_from = clock.start + slow_from
    schedule = {"lr_schedule": "linear", "lr_min_ratio": 0.0, "warmup_steps": 0}
    path = train_quickly(**WITH_TIME, **schedule)
    rates = rates_at(clock, path)
    assert len(rates) > 40  # of 6 an epoch: they repeat


def test_stopped_and_resumed_it_takes_two_minutes_in_all(clock, place, monkeypatch, capsys):
    update = Run.update

    def stopping(run):
        if run.step == 40:
            raise Stopped(2)
        update(run)

    schedule = {"lr_schedule": "linear", "lr_min_ratio": 0.0, "warmup_steps": 0}
    with monkeypatch.context() as patch:
        patch.setattr(Run, "update", stopping)
        with pytest.raises(Stopped):
            train_quickly(**WITH_TIME, **schedule)
    clock.start += 2  # the write after the signal is lost
    path = train_quickly({"resume": True}, **WITH_TIME, **schedule)
    assert re.search(r"at step 40, 0\.[89] of 2 minutes used", capsys.readouterr().out)
    rates_at(clock, path)
    train_quickly({"resume": True}, **WITH_TIME, **schedule)
    assert "that is the end: raise max_minutes to train on" in capsys.readouterr().out


def test_another_limit_or_patience_may_end_it_earlier(clock):
    assert len(history_of(train_quickly(**{**WITH_TIME, "max_steps": 9})).train_losses) == 9
    worsens = {**WITH_TIME, "learning_rate": 1.0, "warmup_steps": 0, "patience": 2}
    state = checkpoint.load(train_quickly(**worsens))
    assert state["step"] < len(state["history"]["train_losses"]) or clock.passed < 110


def test_no_time_for_an_update_is_said_and_leaves_a_model(clock, capsys):
    path = train_quickly(max_minutes=0.01)
    assert checkpoint.load(path)["step"] == 0
    assert "no time for an update: raise max_minutes" in capsys.readouterr().err


@pytest.mark.parametrize(("limit", "pages"), [({"max_minutes": 2}, 2), ({"max_steps": 4}, 1)])
def test_a_limited_run_knows_what_its_report_will_take(clock, monkeypatch, limit, pages):
    written = []
    monkeypatch.setattr(html, "write", clock.after(lambda *page: written.append(page), 2.5))
    state = checkpoint.load(train_quickly(**{**WITH_TIME, "max_minutes": 0, **limit}))
    assert len(written) == pages
    assert state["time"].get("report") == (2.5 if "max_minutes" in limit else None)
    told = Progress({**DEFAULTS, **limit}, BATCHES, Processes())
    told.load_state_dict(state["time"])
    assert told.costs["report"] == state["time"].get("report", 0.0)


def test_what_follows_the_last_update_is_kept_free(clock):
    progress = Progress({**DEFAULTS, "max_minutes": 1}, BATCHES, Processes())
    progress.start(0)
    progress.costs |= {"update": 1.0, "evaluation": 3.0, "write": 2.0, "report": 5.0}
    clock.seconds += 60 - EXIT_SECONDS - (1 + 3 + 3 * 2 + 5) - 0.1
    progress.read()
    assert progress.share == pytest.approx(1, abs=0.01)
    assert not progress.is_over(1)
    clock.seconds += 0.2
    progress.read()
    assert progress.is_over(1)


def test_a_resume_keeps_that_time_free_too(clock):
    config = {**DEFAULTS, "max_minutes": 1}
    before = Progress(config, BATCHES, Processes())
    before.start(0)
    before.costs |= {"update": 1.0, "evaluation": 3.0, "write": 2.0, "report": 5.0}
    clock.seconds += 20
    before.read()
    again = Progress(config, BATCHES, Processes())
    again.load_state_dict(before.state_dict())
    assert (again.costs, again.share) == (before.costs, before.share)


def test_what_comes_before_time_counts_tells_nothing_of_the_pace(clock):
    progress = Progress({**DEFAULTS, "max_minutes": 1}, BATCHES, Processes())
    progress.start(500)
    clock.seconds += 6
    progress.read()
    assert progress.expected_steps(510) == pytest.approx(500 + 100, abs=2)
    assert progress.place(510) == "step 510, 0.1 of 1 minutes used"


def test_all_processes_take_the_clock_of_the_first():
    said = []

    class Other(Processes):
        is_first = False

        def highest(self, number: int) -> int:
            assert number == 0  # its own clock does not count
            return said[-1]

    class First(Processes):
        def highest(self, number: int) -> int:
            said.append(number)
            return number

    config = {**DEFAULTS, "max_minutes": 1}
    first, other = (Progress(config, BATCHES, team) for team in (First(), Other()))
    other.began -= 1e3
    first.began = progress.time.monotonic() - 20
    for one in (first, other):
        one.read()
        one.start(0)
    first.began -= 25
    for one in (first, other):
        one.read()
    assert other.share == first.share == pytest.approx(25 / (40 - EXIT_SECONDS), abs=0.01)
    assert other.at(3, warmup_steps=0) == first.at(3, warmup_steps=0)


@pytest.fixture
def decays(monkeypatch) -> list[tuple[float, float]]:
    """Decay and dropout of every update that is made."""
    seen, update = [], Learner.update

    def noted(self, *batch, **given):
        decay = self.optimizer.param_groups[0]["weight_decay"]
        seen.append((decay, self.model.positional_encoding.dropout.p))
        return update(self, *batch, **given)

    monkeypatch.setattr(Learner, "update", noted)
    return seen


FREE = {key: DEFAULTS[key] for key in ("weight_decay", "dropout")}
ONE = {"optimizer": "muon", "generations": 1}


def decided(path: Path) -> tuple[float, float]:
    config = checkpoint.load(path)["config"]
    return config["weight_decay"], config["embedding_dropout"]


@pytest.mark.parametrize("more", [{}, {"max_steps": 10**5}])
def test_decay_and_dropout_follow_once_it_is_known_how_often_the_text_is_shown(clock, decays, more):
    found = decided(train_quickly(ONE, **WITH_TIME, **FREE, **more))
    first = decays.index(found)
    assert first >= NUM_PACED
    assert (set(decays[:first]), set(decays[first:])) == ({(0.1, 0.0)}, {found})
    assert min(found) > 0.1


def test_stopped_before_that_is_known_a_run_learns_it_when_it_goes_on(clock, decays, monkeypatch):
    update = Run.update

    def stopping(run):
        if run.step == NUM_PACED // 2:
            raise Stopped(2)
        update(run)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "update", stopping)
        with pytest.raises(Stopped):
            train_quickly(ONE, **WITH_TIME, **FREE)
    decays.clear()
    found = decided(train_quickly({"resume": True}, **WITH_TIME, **FREE))
    first = decays.index(found)
    assert (set(decays[:first]), set(decays[first:])) == ({(0.1, 0.0)}, {found})
    assert first >= NUM_PACED
    assert min(found) > 0.1


def test_a_warm_up_that_there_is_no_time_for_is_said_once_the_pace_is_known(clock, capsys):
    train_quickly(**{**WITH_TIME, "warmup_steps": 10**5})
    said = capsys.readouterr().err
    assert re.search(r"warmup_steps=100000 is more than the \d+ updates that there is time", said)
