"""The table of recipes: each row is runs of train.py that differ in the keys it names."""

import json
from pathlib import Path

import pytest
from tiny_run import CONFIG, prepare

import bench
from benchmarks import recipe, record
from system.errors import ConfigError
from training.settings import DEFAULTS, KEYS
from training.wanted import problems_of, wanted

SIZES = ("seq_len", "embedding_dim", "num_layers", "num_heads", "ffn_hidden_dim", "stride")
TINY = {name: CONFIG[name] for name in SIZES} | {"device": "cpu", "precision": "float32"}


def test_every_recipe_is_a_config_that_can_be_trained():
    for changes in recipe.RECIPES.values():
        assert changes.keys() <= KEYS.keys()
        assert not problems_of(changes)
        assert wanted(DEFAULTS, recipe.limited(changes, 150)).config["max_minutes"] == 2.5
    assert recipe.RECIPES["the default"] == {}  # what the others are compared with


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--batch-size", "4"], "recipe takes no --batch-size"),
        (["--seeds", "0"], "seeds=0 is not a whole number >= 1"),
        (["--max-seconds", "-1"], "max_seconds=-1.0 is not above 0"),
        (["--only", "["], r"only: \[ is no regular expression"),
        (["--only", "Lion"], "only=Lion is in none of: the default, "),
    ],
)
def test_what_no_recipe_has_is_refused(options, complaint):
    with pytest.raises(ConfigError, match=complaint):
        bench.main(["recipe", *options])


def test_seeds_are_of_recipes_alone():
    with pytest.raises(ConfigError, match="train and --seeds: only recipe takes it"):
        bench.main(["train", "--seeds", "3"])


def test_texts_of_one_name_are_told_apart():
    same, another = [Path("a/data.txt"), Path("b/data.txt")], Path("c/story.txt")
    assert [*record.labels([*same, another]).values()] == [*map(str, same), "story"]


@pytest.mark.slow
def test_a_recipe_that_learns_has_the_lower_loss(tmp_path, monkeypatch, capsys):
    prepare(tmp_path)
    monkeypatch.setattr(recipe, "RECIPES", {"slow": {"learning_rate": 1e-6}, "fast": {}})
    monkeypatch.setattr(recipe, "COMMON", {**recipe.COMMON, **TINY, "num_epochs": 1})
    bench.main(["recipe", "data.txt", "--seeds", "2", "--json", "rows.json"])
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert rows["fast"]["data, loss"] < rows["slow"]["data, loss"]
    assert rows["fast"]["data, spread"] > 0  # another seed, another run
    row = next(line for line in capsys.readouterr().out.splitlines() if "| fast | " in line)
    assert f" {rows['fast']['data, loss']:.4f} |" in row
