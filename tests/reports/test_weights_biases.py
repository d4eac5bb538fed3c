"""Weights & Biases finds scalars, samples, histograms, config and best loss in files, unsent."""

import json
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_run import train_quickly

from reports.tensorboard import TAGS
from system.errors import ConfigError

HERE = Path()
BLOCK, FILE_HEAD, HEAD = 32768, 7, 7  # bytes: of a log as LevelDB has it


def records(path: Path) -> Iterator:
    """What the file holds; a record may be spread over several blocks."""
    from wandb.proto.wandb_internal_pb2 import Record

    raw, place, whole = path.read_bytes(), FILE_HEAD, b""
    while place + HEAD <= len(raw):
        if BLOCK - place % BLOCK < HEAD:  # no head fits into the rest of a block
            place += BLOCK - place % BLOCK
        _, length, kind = struct.unpack_from("<IHB", raw, place)
        if place + HEAD + length > len(raw):
            return
        whole += raw[place + HEAD : place + HEAD + length]
        place += HEAD + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(whole)
            whole = b""


def finished(path: Path) -> list:
    """All records, once a process of wandb's own has written the last."""
    while not any(record.HasField("exit") for record in records(path)):
        time.sleep(0.1)
    return list(records(path))


def told(items) -> dict:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_a_run_and_its_resume_are_recorded_under_one_id_and_nothing_is_sent(
    place, proxy, monkeypatch
):
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy[0]}")
    train_quickly(wandb=True, sample_tokens=2, num_epochs=1)
    train_quickly({"resume": True, "num_epochs": 2}, wandb=True, sample_tokens=2)
    with open("history.jsonl") as file:
        head, *lines = map(json.loads, file)
    first, second = (finished(path) for path in sorted(HERE.glob("wandb/offline*/*.wandb")))
    for part in (first, second):
        (run,) = (record.run for record in part if record.HasField("run"))
        assert run.run_id == head["run_id"][:8]
        assert told(run.config.update)["seq_len"] == head["config"]["seq_len"]
    found = [told(r.history.item) for r in first + second if r.HasField("history")]
    assert [row["_step"] for row in found] == [line["step"] for line in lines]
    for row, line in zip(found, lines, strict=True):
        known = {name: tag for name, tag in TAGS.items() if line[name] is not None}
        for name, tag in known.items():
            unit = 1e9 if name == "memory_bytes" else 1
            assert row[tag] == pytest.approx(line[name] / unit)
        for kind in ("sample/", "weights/", "gradients/"):
            has_it = any(tag.startswith(kind) for tag in row)
            is_first = line["step"] == 0 and kind == "gradients/"  # no update has been made
            assert has_it == (line["val_loss"] is not None and not is_first)
    best = min(line["val_loss"] for line in lines if line["val_loss"] is not None)
    summaries = [told(record.summary.update) for record in second if record.HasField("summary")]
    assert [row["best/loss"] for row in summaries if "best/loss" in row] == [pytest.approx(best)]
    assert proxy[1] == []


def test_without_the_package_the_key_is_refused_before_training(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        train_quickly(wandb=True)
    assert not list(HERE.glob("*.pt"))
