"""What "auto" becomes: values by rules, where nobody has written another."""

import pytest
from tiny_run import CONFIG, start_weights, train_quickly

from corpus.corpus import read_corpus
from model import Dropout
from storage import checkpoint
from system.errors import ConfigError
from tokenizer import GPT2Tokenizer
from training.begin import begin
from training.capacity import num_parameters
from training.progress import last_step
from training.rules import DEFAULT_RUN, FEW, LONG, RULES, PowerLaw, always, features_of, settled
from training.settings import AUTO, DEFAULTS
from training.wanted import wanted

ALL_AUTO = dict.fromkeys(("learning_rate", "weight_decay", "dropout"), AUTO)


def config_of(path) -> dict:
    return checkpoint.load(path)["config"]


def test_a_power_law_is_its_base_at_the_default_and_stays_within_its_bounds():
    law = PowerLaw(1e-3, {"width": -0.5, "tokens": 1.0}, least=1e-4, most=3e-3)
    assert law(DEFAULT_RUN) == 1e-3
    assert law({**DEFAULT_RUN, "width": 1024}) == 5e-4
    assert law({**DEFAULT_RUN, "tokens": 2 * DEFAULT_RUN["tokens"], "width": 64}) == 3e-3
    assert law({**DEFAULT_RUN, "width": 256 * 10_000}) == 1e-4
    share = PowerLaw(0.1, {"passes": 1.0}, least=0.0, most=1.0)
    passes = DEFAULT_RUN["passes"]
    assert [share({"passes": passes * part}) for part in (0, 0.04, 0.06)] == [0.0, 0.0, 0.006]


@pytest.mark.parametrize("name", ["adamw", "lora", "muon"])
def test_auto_becomes_numbers_that_the_checkpoint_holds_and_a_resume_keeps(place, capsys, name):
    given = {**ALL_AUTO, "adapter" if name == "lora" else "optimizer": name, "max_steps": 4}
    config = config_of(train_quickly(given))
    said = capsys.readouterr().out
    for key in ALL_AUTO:
        assert isinstance(config[key], float)
        assert f"auto      {key} {config[key]:g}, by a rule" in said
    again = config_of(train_quickly({"resume": True, "max_steps": 8}))
    assert {key: again[key] for key in ALL_AUTO} == {key: config[key] for key in ALL_AUTO}
    changed = config_of(train_quickly({"resume": True, "max_steps": 9, "dropout": 0.4}))
    assert changed["dropout"] == 0.4


def test_a_number_that_somebody_wrote_is_never_replaced(place):
    written = {"learning_rate": 1e-4, "weight_decay": 0.2, "dropout": 0.0, "optimizer": "muon"}
    config = config_of(train_quickly(written, max_steps=4))
    assert {key: config[key] for key in written} == written


def shares(given, **changes) -> tuple[float, ...]:
    """What a run zeroes of the embedding and of the blocks' activations as it begins."""
    run = begin(wanted({**CONFIG, "dropout": DEFAULTS["dropout"], **changes}, given))
    layers = [layer for layer in run.learner.model.modules() if isinstance(layer, Dropout)]
    assert layers[0] is run.learner.model.positional_encoding.dropout
    return tuple(dict.fromkeys((layers[0].p, *(layer.p for layer in layers[1:]))))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"optimizer": "muon"}, (0.12, 0.0)),
        ({"optimizer": "muon", "dropout": AUTO}, (0.12, 0.0)),
        ({"optimizer": "muon", "embedding_dropout": 0.25}, (0.25, 0.0)),
        ({"optimizer": "muon", "dropout": 0.3}, (0.3,)),  # a number is for all places
        ({"optimizer": "muon", "dropout": 0.0}, (0.0,)),
        ({"optimizer": "adamw"}, (0.1,)),
        ({"optimizer": "adamw", "dropout": AUTO}, (0.1,)),
        ({"optimizer": "adamw", "embedding_dropout": 0.25}, (0.25, 0.1)),
        ({"adapter": "lora", "dropout": 0.3, "lora_dropout": 0.3}, (0.3,)),
    ],
)
def test_muon_drops_out_of_the_embedding_alone_unless_somebody_wrote_more(
    place, monkeypatch, given, expected
):
    monkeypatch.setitem(RULES["muon"], "embedding_dropout", always(0.12))
    assert shares(given) == expected


def test_a_text_that_is_shown_more_often_has_more_of_its_embedding_dropped(place, capsys):
    law = RULES["muon"]["embedding_dropout"]
    once, often, taught = (
        shares({"optimizer": "muon", "num_epochs": n, "generations": g})[0]
        for n, g in ((1, 1), (8, 1), (16, 2))
    )
    assert once < often == taught  # so often in each of two models
    assert often == pytest.approx(law({**DEFAULT_RUN, "passes": 8}), rel=0.1)  # no overlap
    assert f"auto      embedding_dropout {often:g}, by a rule" in capsys.readouterr().out


def test_a_resume_drops_what_its_run_dropped(place):
    train_quickly({"optimizer": "muon"}, dropout=DEFAULTS["dropout"], num_epochs=4)
    (dropped, _), longer = (shares({"resume": True, "num_epochs": n}) for n in (4, 8))
    assert longer == (dropped, 0.0)
    assert dropped > 0
    assert shares({"resume": True, "dropout": 0.3}, num_epochs=4) == (dropped, 0.3)


def test_a_run_of_an_earlier_version_goes_on_with_one_dropout_for_all(place, capsys):
    train_quickly({"optimizer": "muon", "dropout": 0.15}, max_steps=4, dropout=DEFAULTS["dropout"])
    path = checkpoint.step_path(place, 4)
    state = checkpoint.load(path)
    del state["config"]["embedding_dropout"], state["script_config"]["embedding_dropout"]
    checkpoint.save(path, state)
    capsys.readouterr()
    assert shares({"resume": str(path), "max_steps": 9}) == (0.15,)
    assert "changed   embedding_dropout" not in capsys.readouterr().out


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


@pytest.mark.parametrize("more", [{}, {"learning_rate": AUTO}])
def test_published_weights_are_tuned_by_muon_at_a_gentle_rate_of_its_own(place, capsys, more):
    start = {"weights_path": str(start_weights(place / "start")), "max_steps": 4}
    config = config_of(train_quickly({**start, "optimizer": "muon", **more}, weight_decay=0.1))
    law = RULES["muon, tuning"]["learning_rate"]
    assert config["learning_rate"] == law({"width": config["embedding_dim"]})
    assert law(DEFAULT_RUN) < RULES["muon"]["learning_rate"](DEFAULT_RUN)
    assert config["weight_decay"] == 0.1
    assert config_of(train_quickly(start))["learning_rate"] == 1e-5


@pytest.fixture
def corpus(place):
    return read_corpus(CONFIG, GPT2Tokenizer(), share_rows=True)


def decided(config, corpus) -> dict:
    return settled(config, corpus, num_steps=last_step(config, corpus.batches), is_paced=True)


def test_few_updates_have_a_higher_rate_and_past_so_many_it_stays(corpus):
    wide = {"embedding_dim": 1024, "learning_rate": AUTO}
    config = {**DEFAULTS, **CONFIG, "optimizer": "muon", **wide}
    num_long = LONG // (corpus.batches.batch_size * config["seq_len"])

    def rate(**limits):
        return decided({**config, "num_epochs": 10**6, **limits}, corpus)["learning_rate"]

    assert rate(max_steps=5) == rate(max_steps=FEW) > rate(max_steps=2 * FEW)
    assert rate(max_steps=num_long // 16) == pytest.approx(4 * rate(max_steps=num_long), rel=0.05)
    assert rate(max_steps=num_long) == rate(max_steps=10 * num_long) == rate(max_minutes=1)


def test_adamw_has_a_higher_rate_for_very_few_updates_alone(corpus):
    wide = {"embedding_dim": 1024, "learning_rate": AUTO}
    config = {**DEFAULTS, **CONFIG, "num_epochs": 10**6, **wide}
    few, *others = (
        decided({**config, "max_steps": n}, corpus)["learning_rate"]
        for n in (FEW // 2, FEW, 10 * FEW)
    )
    assert others == [few / 2] * 2
    assert decided({**config, "max_steps": 0, "max_tokens": 1}, corpus)["learning_rate"] > few


def test_rows_of_tokens_that_do_not_occur_are_no_parameters_of_the_rules(place, corpus):
    config = {**DEFAULTS, **CONFIG, "optimizer": "muon", "weight_decay": AUTO, "num_layers": 9}
    full = read_corpus(CONFIG, GPT2Tokenizer(), share_rows=False)
    assert full.vocabulary.size > 10 * corpus.vocabulary.size
    found = [features_of(config, own, 10)["parameters"] for own in (corpus, full)]
    assert found[0] == found[1] < num_parameters(config, full.vocabulary.size)


def test_the_default_run_has_the_values_that_were_measured_for_it():
    muon = {key: law(DEFAULT_RUN) for key, law in RULES["muon"].items()}
    assert muon == {
        "learning_rate": 1.1e-2,
        "weight_decay": 3.0,
        "dropout": 0.0,
        "embedding_dropout": 0.33,
    }
    assert [RULES[name]["learning_rate"](DEFAULT_RUN) for name in ("adamw", "lora")] == [1e-3, 3e-3]
