"""`history.jsonl` has whole lines, each once, whatever happens to the disk or to the process."""

import json
import math
import resource
import shutil
from contextlib import suppress
from pathlib import Path

import pandas
import pytest
from tiny_run import train_quickly

from reports import jsonl
from reports.history import Evaluation, History, UpdateRecord
from reports.jsonl import HistoryFile, line_of
from storage.run_folder import HISTORY_NAME
from training.run import Run

HERE = Path()
ABOUT = {"run_id": "a" * 32, "config": {"seed": 1}}
NASTY = "</script>\x1b[31m‮\x7f \ud800"


def rows_of(path: Path = HERE / HISTORY_NAME) -> list[dict]:
    content = path.read_bytes()
    assert content.isascii()
    assert content.endswith(b"\n")
    assert not set(content) & {0x1B, 0x7F}
    return [json.loads(row) for row in content.splitlines()]


def steps_of(path: Path = HERE / HISTORY_NAME) -> list[int]:
    return [row["step"] for row in rows_of(path)[1:]]


@pytest.fixture
def often(monkeypatch):
    """A line every other update."""
    monkeypatch.setattr(jsonl, "LOG_FREQ", 2)
    monkeypatch.setattr("training.run.LOG_FREQ", 2)


def grown(history: History, step: int) -> dict:
    """The line after one more update, with an evaluation where the step divides by four."""
    if step:
        history.add(UpdateRecord(5 / step, 1.0, 1e-3, 100, 0.5, 10**9, is_applied=True))
    if step % 4 == 0:
        history.evaluations.append(Evaluation(step, 100 * step, 3.0, 1.0))
    return line_of(history, max(0, step - 1), step, sample=NASTY)


def test_a_line_has_the_means_since_the_line_before_and_the_evaluation():
    history = History(baselines={"xz": 2.0})
    history.evaluations.append(Evaluation(0, 0, 9.0, 3.0))
    recent = [
        UpdateRecord(loss, norm, 1e-3, 100, 0.5, 7, is_applied=True)
        for loss, norm in [(9.0, 9.0), (4.0, 1.0), (2.0, 3.0)]
    ]
    for record in recent:
        history.add(record)
    line = line_of(history, 1, 3, recent=recent)
    expected = {"step": 3, "tokens": 300, "train_loss": 3.0, "grad_norm": 2.0, "xz": 2.0}
    expected |= {"learning_rate": 1e-3, "tokens_per_second": 200.0, "memory_bytes": 7}
    assert {name: line[name] for name in expected} == expected
    assert line["val_loss"] is line["perplexity"] is line["bits_per_byte"] is line["sample"] is None
    history.evaluations.append(Evaluation(3, 300, 2.0, 1.0))
    line = line_of(history, 3, 3, recent=recent, sample="Once")
    assert (line["val_loss"], line["perplexity"], line["bits_per_byte"]) == (2, math.exp(2), 1)
    assert (line["train_loss"], line["grad_norm"], line["sample"]) == (None, None, "Once")


def test_what_is_not_finite_is_no_number():
    history = History(evaluations=[Evaluation(0, 0, 800.0, 3.0)])
    assert history.evaluations[0].perplexity == math.inf
    assert line_of(history, 0, 0)["perplexity"] is None


def test_a_run_writes_its_config_then_a_line_per_report(place, often):
    train_quickly(sample_tokens=2, num_epochs=2)
    head, *lines = rows_of()
    assert head["config"]["embedding_dim"] == 8
    assert {"torch", "python", "threads", "started"} <= head["environment"].keys()
    last = lines[-1]["step"]
    evaluated = [line["step"] for line in lines if line["val_loss"] is not None]
    assert evaluated == sorted({*range(0, last, 4), last // 2, last})  # two epochs
    assert [line["step"] for line in lines] == sorted({*evaluated, *range(0, last, 2)})
    assert [line["step"] for line in lines if line["sample"]] == evaluated
    assert all(line["tokens_per_second"] > 0 for line in lines[1:])
    assert lines[-1]["bits_per_byte"] > 0
    assert lines[-1]["xz"] > 0
    frame = pandas.read_json(HISTORY_NAME, lines=True)
    assert frame["step"].max() == last
    assert frame["val_loss"].count() == len(evaluated)


def test_a_resumed_run_has_the_lines_of_one_that_was_never_stopped(place, often):
    train_quickly(num_epochs=2)
    whole = rows_of()
    train_quickly(num_epochs=1)
    before = rows_of()
    with (HERE / HISTORY_NAME).open("ab") as file:  # a kill came later than the last checkpoint
        file.write(json.dumps({**before[-1], "step": 9999}).encode() + b'\n{"step": 77, "tok')
    train_quickly({"resume": True, "num_epochs": 2})
    after = rows_of()
    assert after[0]["run_id"] == before[0]["run_id"]
    assert after[0]["config"]["num_epochs"] == 2

    def numbers(rows):
        return [(row["step"], row["tokens"], row["train_loss"] is None) for row in rows[1:]]

    assert numbers(after) == numbers(whole)
    assert after[1 : len(before)] == before[1:]
    seconds = [row["seconds"] for row in after[1:]]
    assert seconds == sorted(seconds)


def test_a_branch_has_the_lines_before_it_from_its_checkpoint(place, often):
    train_quickly(keep_checkpoints=9)
    old = rows_of()
    train_quickly({"resume": "model_checkpoint_step_6.pt"})
    new = rows_of()
    assert new[0]["run_id"] != old[0]["run_id"]
    assert [row["step"] for row in new[1:]] == [row["step"] for row in old[1:]]
    kept = ("tokens", "val_loss", "learning_rate", "bits_per_byte")
    for before, after in zip(old[1:], new[1:], strict=True):
        if after["step"] < 6:
            assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    (aside,) = HERE.glob(f"earlier_runs/*/{HISTORY_NAME}")
    assert rows_of(aside) == old


def test_a_disk_that_is_full_at_any_byte_costs_only_what_the_next_evaluation_brings(tmp_path):
    path, history = tmp_path / HISTORY_NAME, History()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    file = HistoryFile(path, lambda: ABOUT)
    file(history, grown(history, 0))
    whole = path.read_bytes()
    for step in range(1, 41):
        line = grown(history, step)
        room = len(path.read_bytes()) + 13 * step  # with less than a line, at last with more
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        with suppress(OSError):
            file(history, line)
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert path.read_bytes().startswith(whole)
        assert steps_of(path) == sorted(set(steps_of(path)))
    for step in range(41, 45):
        file(history, grown(history, step))
    assert steps_of(path) == sorted({*range(0, 45, 4), *range(10, 44, 10)})


def test_a_removed_folder_is_made_again_at_the_next_evaluation(tmp_path):
    path, history = tmp_path / "run" / HISTORY_NAME, History()
    file = HistoryFile(path, lambda: ABOUT)
    for step in range(2):
        file(history, grown(history, step))
    shutil.rmtree(path.parent)
    with pytest.raises(FileNotFoundError):
        file(history, grown(history, 2))
    file(history, grown(history, 3))  # not said again
    assert not path.exists()
    file(history, grown(history, 4))
    assert steps_of(path) == [0, 4]  # what is regular in between would be there, too


def test_a_file_of_the_users_is_not_touched(place, capsys):
    (place / HISTORY_NAME).write_text('{"text": "a story"}\n')
    train_quickly(num_epochs=1)
    assert (place / HISTORY_NAME).read_text() == '{"text": "a story"}\n'
    assert f"warning: no {HISTORY_NAME}: No history of a run" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [ValueError, OSError, KeyError])
def test_a_broken_recorder_or_picture_stops_no_training(place, monkeypatch, capsys, kind):
    def broken(*arguments):
        raise kind("broken")

    monkeypatch.setattr(HistoryFile, "__call__", broken)
    start = Run.__init__

    def with_broken_sink(run, *arguments):
        start(run, *arguments)
        run.sinks["picture"] = broken

    monkeypatch.setattr(Run, "__init__", with_broken_sink)
    assert train_quickly(num_epochs=1).exists()
    notes = capsys.readouterr().err
    assert f"warning: no {HISTORY_NAME}: " in notes
    assert "warning: no picture: " in notes
