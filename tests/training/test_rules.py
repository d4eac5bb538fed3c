"""What "auto" becomes: values by rules, where nobody has written another."""

import pytest
from tiny_run import CONFIG, train_quickly

from corpus.corpus import read_corpus
from storage import checkpoint
from system.errors import ConfigError
from tokenizer import GPT2Tokenizer
from training.rules import DEFAULT_RUN, FEW, LONG, RULES, PowerLaw, settled
from training.settings import AUTO

ALL_AUTO = dict.fromkeys(("learning_rate", "weight_decay", "dropout"), AUTO)


def config_of(path) -> dict:
    return checkpoint.load(path)["config"]


def test_a_power_law_is_its_base_at_the_default_and_stays_within_its_bounds():
    law = PowerLaw(1e-3, {"width": -0.5, "tokens": 1.0}, least=1e-4, most=3e-3)
    assert law(DEFAULT_RUN) == 1e-3
    assert law({**DEFAULT_RUN, "width": 1024}) == 5e-4
    assert law({**DEFAULT_RUN, "tokens": 2 * DEFAULT_RUN["tokens"], "width": 64}) == 3e-3
    assert law({**DEFAULT_RUN, "width": 256 * 10_000}) == 1e-4


@pytest.mark.parametrize("name", sorted(RULES))
def test_auto_becomes_numbers_that_the_checkpoint_holds_and_a_resume_keeps(place, capsys, name):
    given = {**ALL_AUTO, "adapter" if name == "lora" else "optimizer": name, "max_steps": 4}
    config = config_of(train_quickly(given))
    said = capsys.readouterr().out
    for key in ALL_AUTO:
        assert isinstance(config[key], float)
        assert f"auto      {key} {config[key]:g}, by a rule" in said
    again = config_of(train_quickly({"resume": True, "max_steps": 8}, **ALL_AUTO))
    assert {key: again[key] for key in ALL_AUTO} == {key: config[key] for key in ALL_AUTO}
    changed = config_of(train_quickly({"resume": True, "max_steps": 9, "dropout": 0.4}))
    assert changed["dropout"] == 0.4


def test_a_number_that_somebody_wrote_is_never_replaced(place):
    written = {"learning_rate": 1e-4, "weight_decay": 0.2, "dropout": 0.0, "optimizer": "muon"}
    config = config_of(train_quickly(written, max_steps=4))
    assert {key: config[key] for key in written} == written


def test_an_optimizer_without_rules_wants_numbers(place, monkeypatch):
    monkeypatch.setitem(RULES, "adamw", {})
    with pytest.raises(ConfigError, match=r"no rule for adamw \(dropout=auto\): set a number"):
        train_quickly(dropout=AUTO)
    assert config_of(train_quickly(max_steps=4))["dropout"] == 0.2


def test_muon_has_a_rate_of_its_own_where_nobody_chose_one(place):
    muon, adamw = (
        config_of(train_quickly({"optimizer": name}, max_steps=4))["learning_rate"]
        for name in ("muon", "adamw")
    )
    assert (muon > 1e-3, adamw) == (True, 3e-4)


@pytest.fixture
def corpus(place):
    return read_corpus(CONFIG, GPT2Tokenizer(), share_rows=True)


def test_few_updates_have_a_higher_rate_and_past_so_many_it_stays(corpus):
    config = {**CONFIG, "optimizer": "muon", "embedding_dim": 1024, "learning_rate": AUTO}
    num_long = LONG // (corpus.batches.batch_size * config["seq_len"])

    def rate(**limits):
        return settled({**config, "num_epochs": 10**6, **limits}, corpus)["learning_rate"]

    assert rate(max_steps=5) == rate(max_steps=FEW) > rate(max_steps=2 * FEW)
    assert rate(max_steps=num_long // 16) == pytest.approx(4 * rate(max_steps=num_long), rel=0.05)
    assert rate(max_steps=num_long) == rate(max_steps=10 * num_long) == rate(max_minutes=1)


def test_adamw_has_a_higher_rate_for_very_few_updates_alone(corpus):
    config = {**CONFIG, "embedding_dim": 1024, "learning_rate": AUTO, "num_epochs": 10**6}
    few, *others = (
        settled({**config, "max_steps": n}, corpus)["learning_rate"]
        for n in (FEW // 2, FEW, 10 * FEW)
    )
    assert others == [few / 2] * 2
    assert settled({**config, "max_steps": 0, "max_tokens": 1}, corpus)["learning_rate"] > few
