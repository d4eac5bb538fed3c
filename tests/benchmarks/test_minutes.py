"""The table of so many minutes: what each contestant's loss is of, and what is refused."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import bench
from benchmarks.minutes import PROJECT, mean_loss, run
from model import build_transformer
from system.errors import ConfigError


@pytest.mark.parametrize("num_ids", [2, 7, 8, 30])
def test_the_loss_is_of_every_token_but_the_first(num_ids):
    torch.manual_seed(0)
    model = build_transformer(11, 7, 8, 1, 2, 0.5, 12)
    ids = torch.arange(num_ids) % 11
    found = mean_loss(lambda x, y: model(x), model, ids, 7)
    losses = [
        F.cross_entropy(model(ids[None, n // 7 * 7 : n + 1])[0, -1], ids[n + 1])
        for n in range(num_ids - 1)
    ]
    assert found == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)  # float32


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--batch-size", "4"], "minutes takes no --batch-size"),
        (["--max-seconds", "0"], "max_seconds=0.0 is not above 0"),
        (["--nanogpt", "."], r"nanogpt=.* has no model.py"),
    ],
)
def test_what_cannot_be_measured_is_refused(place, options, complaint):
    with pytest.raises(ConfigError, match=complaint):
        bench.main(["minutes", *options])


def test_a_contestant_that_fails_is_a_line_with_its_reason():
    with pytest.raises(ConfigError, match=r"-c ended with 1: .*no such thing"):
        run([sys.executable, "-c", "raise SystemExit('no such thing')"])


@pytest.mark.slow
def test_each_contestant_is_given_the_same_seconds_and_all_of_the_validation_part(place, capsys):
    story = Path(PROJECT, "example.txt").read_text(encoding="utf-8")[:60_000]
    Path("text.txt").write_text(story, encoding="utf-8")
    bench.main(["minutes", "text.txt", "--max-seconds", "8", "--json", "rows.json"])
    rows = json.loads(Path("rows.json").read_text())["rows"]
    assert list(rows) == ["ours", "transformers' Trainer"]
    for row in rows.values():
        assert 0 < row["text, bits a byte"] < row["text, nats a token"] < 11
        assert 2 < row["text, seconds"] < 60
