"""docs/variants.md: one file each for an optimizer, a schedule, an attention, a config key."""

import re
import shutil
from pathlib import Path

import train

ROOT = Path(train.__file__).parent
DOC = (ROOT / "docs" / "variants.md").read_text(encoding="utf-8")
CHANGED = {"training/optim.py", "training/schedule.py", "model.py", "training/settings.py"}
LIFE = """
import os, torch
from pathlib import Path
from tiny_run import CONFIG, canonical, prepare, without_plots
import train
from export import main as export
from generate import main as generate
from storage import checkpoint

without_plots()
prepare(Path("text"))
config = {**CONFIG, "optimizer": "lion", "lr_schedule": "early", "run_name": "a variant"}
whole = checkpoint.load(train.train({**config, "output_dir": "whole", "keep_checkpoints": 9}))
assert whole["config"]["run_name"] == "a variant"
assert any("query_norm" in name for name in whole["model_state_dict"])
train.train({**config, "output_dir": "rest", "resume": "whole/model_checkpoint_step_6.pt"})
ends = [checkpoint.load(f"{name}/model_checkpoint_step_18.pt") for name in ("whole", "rest")]
for key in ("model_state_dict", "optimizer_state_dict", "history"):
    assert canonical(ends[0][key]) == canonical(ends[1][key]), key
assert ends[0]["optimizer_state_dict"][0].keys() == {"momentum"}
generate(["--checkpoint=whole", "--prompt=Once", "--max-new-tokens=30", "--seed=1"])
export(["--to", "hf", "--checkpoint=whole", "exported"])
"""


def applied(source: str, change: str) -> str:
    """The source with a diff's lines put in and taken out, in order; the rest is context."""
    position = 0
    for line in change.splitlines(keepends=True):
        if line[0] == "+":
            source = source[:position] + line[1:] + source[position:]
            position += len(line) - 1
        else:
            start = source.index(line[1:], position)
            if line[0] == "-":
                source = source[:start] + source[start + len(line) - 1 :]
            position = start + (len(line) - 1) * (line[0] == " ")
    return source


def test_each_variant_is_a_change_to_one_file_of_less_than_30_lines(tmp_path, run_python):
    clone = tmp_path / "clone"
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(".*", "docs", "*.pt", "__pycache__"))
    changes = re.findall(r"^```diff\n# (\S+)\n(.*?)^```$", DOC, re.DOTALL | re.MULTILINE)
    assert {name for name, _ in changes} == CHANGED
    for name, change in changes:
        assert change.count("\n") < 30
        path = clone / name
        path.write_text(applied(path.read_text("utf-8"), change), encoding="utf-8")
    result = run_python("-c", LIFE, folder=tmp_path, PYTHONPATH=f"{clone}:{clone / 'tests'}")
    assert "Once" in result.stdout, result.stderr
    assert "query_norm" in result.stderr.splitlines()[-1]
    assert "ExportError" in result.stderr or "WeightsError" in result.stderr
    assert not (tmp_path / "text" / "exported").exists()
