"""TensorBoard reads scalars, samples, histograms and hyper-parameters; a resume doubles none."""

import json
import sys
from pathlib import Path

import pytest
from tiny_run import train_quickly

from reports import tensorboard
from reports.tensorboard import TAGS
from system.errors import ConfigError

HERE = Path()


def events():
    """What TensorBoard's own reader finds in the run's folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = HERE.glob("tensorboard/*")
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0})
    return found.Reload()


def lines() -> list[dict]:
    return [json.loads(row) for row in Path("history.jsonl").read_text().splitlines()][1:]


def test_a_run_and_its_resume_have_every_line_once(place):
    train_quickly(tensorboard=True, sample_tokens=2, num_epochs=1)
    with open("history.jsonl") as file:
        assert json.loads(file.readline())["config"]["tensorboard"] is True
    train_quickly({"resume": True, "num_epochs": 2}, tensorboard=True, sample_tokens=2)
    found = events()
    for name, tag in TAGS.items():
        unit = 1e9 if name == "memory_bytes" else 1
        expected = [(line["step"], line[name] / unit) for line in lines() if line[name] is not None]
        scalars = [(scalar.step, scalar.value) for scalar in found.Scalars(tag)]
        assert [step for step, _ in scalars] == [step for step, _ in expected], tag
        # float32 in the files
        assert [v for _, v in scalars] == pytest.approx([v for _, v in expected], rel=1e-6)
    evaluated = [line["step"] for line in lines() if line["val_loss"] is not None]
    tags = found.Tags()["histograms"]
    weights = [tag for tag in tags if tag.startswith("weights/")]
    assert len([tag for tag in tags if tag.startswith("gradients/")]) == len(weights) > 5
    assert [histogram.step for histogram in found.Histograms(weights[0])] == evaluated
    samples = found.Tensors("sample/text_summary")
    assert [sample.step for sample in samples] == evaluated
    assert samples[0].tensor_proto.string_val[0].startswith(b"    Once upon a time")
    assert "_hparams_/experiment" in found.summary_metadata
    best = min(line["val_loss"] for line in lines() if line["val_loss"] is not None)
    assert found.Scalars("best/loss")[-1].value == pytest.approx(best, rel=1e-6)


def test_no_tag_is_a_count_that_float32_cannot_hold():
    assert not {"tokens", "step", "skipped"} & TAGS.keys()


def test_without_the_package_the_key_is_refused_before_training(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        train_quickly(tensorboard=True)
    assert not list(HERE.glob("*.pt"))


def test_a_large_tensor_is_thinned(monkeypatch):
    import torch

    monkeypatch.setattr(tensorboard, "MOST_VALUES", 10)
    assert len(tensorboard.few_of(torch.zeros(7, 9))) <= 10
