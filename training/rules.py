"""What "auto" stands for: rules for values that suit a model and a text (docs/recipe.md)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from corpus.corpus import Corpus
from system.errors import ConfigError
from system.process import log
from training.capacity import num_parameters
from training.generations import num_generations, num_passes
from training.origin import gentle, is_published
from training.settings import AUTO, DEFAULTS

LONG = 400_000  # tokens: the rate of a run that sees more is that of one which sees so many
NOTHING = 0.005  # where a rule may give 0, so little does not matter
FEW = 98  # updates: Muon wants no higher rate for fewer, AdamW for fewer alone
# What the rules look at, of the default model on the text that comes with it.
DEFAULT_RUN = {
    "width": 256,
    "updates": LONG / 2048,
    "first_updates": FEW,
    "tokens": 110_866,
    "parameters": 3.99e6,
    "passes": 10.0,
}


@dataclass(frozen=True)
class PowerLaw:
    """base x product(feature ** power), features as multiples of the default run's; bounded."""

    base: float
    powers: Mapping[str, float]
    least: float
    most: float

    def __call__(self, features: Mapping[str, float]) -> float:
        ratios = {name: features[name] / DEFAULT_RUN[name] for name in self.powers}
        value = self.base * math.prod(ratios[name] ** self.powers[name] for name in ratios)
        value = float(f"{min(self.most, max(self.least, value)):.2g}")
        return value if self.least or value > NOTHING else 0.0


def always(value: float) -> PowerLaw:
    return PowerLaw(value, {}, value, value)


RULES = {  # by optimizer, for adapters, and for published weights
    "lora": {
        "learning_rate": PowerLaw(3e-3, {"width": -1.0}, 1e-4, 1e-2),
        "weight_decay": always(0.0),
        "dropout": always(0.1),
    },
    "adamw": {
        "learning_rate": PowerLaw(1e-3, {"width": -1.0, "first_updates": -1.0}, 1e-5, 1.6e-2),
        "weight_decay": always(0.1),
        "dropout": always(0.1),
    },
    "muon": {
        "learning_rate": PowerLaw(1.1e-2, {"width": -1.0, "updates": -0.5}, 1e-4, 6e-2),
        "weight_decay": PowerLaw(3.0, {"passes": 1.0, "tokens": -0.6, "parameters": 0.5}, 0.1, 6.0),
        "dropout": always(0.0),
        "embedding_dropout": PowerLaw(0.33, {"passes": 1.5}, 0.0, 0.35),
    },
    "muon, tuning": {
        "learning_rate": PowerLaw(4e-3, {"width": -1.0}, 1e-4, 1e-2),
        "weight_decay": always(0.1),
        "dropout": always(0.1),
    },
}
RULED = ("learning_rate", "weight_decay", "dropout", "embedding_dropout")
# By optimizer, keys whose defaults suit another one.
OMITTED = {"muon": ("learning_rate", "weight_decay", "dropout")}


def left_to_rules(config: dict[str, Any], chosen: set[str]) -> dict[str, Any]:
    """The config of a new model, or for another optimizer: what nobody chose is the default.

    Where that is another optimizer's it is "auto".
    """
    omitted = OMITTED.get(config["optimizer"], ())
    free = {key: AUTO if key in omitted else DEFAULTS[key] for key in RULED if key not in chosen}
    return with_embedding_dropout({**config, **free})


def with_embedding_dropout(config: dict[str, Any]) -> dict[str, Any]:
    """The config; "auto" for the embedding is as `dropout`: a number, or left to a rule too."""
    if config["embedding_dropout"] != AUTO:
        return config
    return {**config, "embedding_dropout": config["dropout"]}


def as_new(config: dict[str, Any], chosen: set[str]) -> dict[str, Any]:
    """The config with what a new run of its optimizer has where nobody chose a value."""
    if not is_published(config):
        return left_to_rules(config, chosen)
    free = {key: DEFAULTS[key] for key in RULED if key not in chosen}
    config = {**config, **free}
    return with_embedding_dropout(config | gentle(config, RULED, {*chosen, "optimizer"}))


def is_decided(config: dict[str, Any]) -> bool:
    """Whether there is a number for everything that a rule may decide."""
    return AUTO not in [config[key] for key in RULED]


def settled(
    config: dict[str, Any], corpus: Corpus, *, num_steps: float, is_paced: bool
) -> dict[str, Any]:
    """The config with a number for each "auto", which is said; ConfigError without a rule.

    `is_paced` is whether so many updates are expected: else they are the most that there can be,
    and what depends on how often the text is shown stays "auto".
    """
    rules = rules_for(config)
    wanted = [key for key in RULED if config[key] == AUTO]
    if missing := [key for key in OMITTED["muon"] if key in wanted and key not in rules]:
        raise ConfigError(
            f"config: no rule for {config['optimizer']} ({missing[0]}={AUTO}): set a number"
        )
    features = features_of(config, corpus, num_steps)
    if not is_paced:
        del features["passes"]
    found = {
        key: rules[key](features)
        for key in wanted
        if key in rules and rules[key].powers.keys() <= features.keys()
    }
    for key, value in found.items() if not config["plan"] else ():  # its model is another
        log(f"auto      {key} {value:g}, by a rule (docs/recipe.md): --{key} sets another")
    config = {**config, **found}
    return config if "embedding_dropout" in rules else with_embedding_dropout(config)


def rules_for(config: dict[str, Any]) -> Mapping[str, PowerLaw]:
    """Of what the config has learn; {} for an optimizer that has none."""
    if config["adapter"]:
        return RULES[config["adapter"]]
    tuning = RULES.get(f"{config['optimizer']}, tuning") if is_published(config) else None
    return tuning or RULES.get(config["optimizer"], {})


def features_of(config: dict[str, Any], corpus: Corpus, num_steps: float) -> dict[str, float]:
    """What the rules look at, of a run of so many updates."""
    batch_tokens = corpus.batches.full_batch_size * config["seq_len"]
    num_updates = min(LONG / batch_tokens, num_steps)
    num_models = 1 if math.isinf(num_steps) else num_generations(config, corpus, num_steps)
    return {
        "width": config["embedding_dim"],
        "updates": max(FEW, num_updates),
        "first_updates": max(1, min(FEW, num_updates)),
        "tokens": len(corpus.train_ids),
        "parameters": num_parameters(config, corpus.num_used + 1),  # with a row for the others
        "passes": num_passes(config, corpus, num_steps) / num_models,
    }


def for_first_updates(config: dict[str, Any]) -> dict[str, Any]:
    """The config with the least of what is not decided yet."""
    rules = rules_for(config)
    return {**config, **{key: rules[key].least for key in RULED if config[key] == AUTO}}
