"""What "auto" stands for: rules for values that suit a model and a text (docs/recipe.md)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from corpus.corpus import Corpus
from system.errors import ConfigError
from system.process import log
from training.capacity import num_parameters
from training.progress import last_step
from training.settings import AUTO

LONG = 400_000  # tokens: the rate of a run that sees more is that of one which sees so many
FEW = 98  # updates: Muon wants no higher rate for fewer, AdamW for fewer alone
# What the rules look at, of the default model on the text that comes with it.
DEFAULT_RUN = {
    "width": 256,
    "updates": LONG / 2048,
    "first_updates": FEW,
    "tokens": 110_866,
    "parameters": 3.99e6,
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
        return float(f"{min(self.most, max(self.least, value)):.2g}")


def always(value: float) -> PowerLaw:
    return PowerLaw(value, {}, value, value)


RULES = {  # by optimizer, and for adapters
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
        "learning_rate": PowerLaw(8.1e-3, {"width": -1.0, "updates": -0.5}, 1e-4, 6e-2),
        "weight_decay": PowerLaw(3.0, {"tokens": -1.45, "parameters": 0.5}, 0.1, 6.0),
        "dropout": PowerLaw(0.2, {"tokens": -0.5, "parameters": 0.5}, 0.0, 0.3),
    },
}
# By optimizer, keys whose defaults suit another one.
OMITTED = {"muon": ("learning_rate", "weight_decay", "dropout")}


def left_to_rules(config: dict[str, Any], chosen: set[str]) -> dict[str, Any]:
    """The config of a new model, "auto" where nobody chose a value and the default is another's."""
    omitted = [key for key in OMITTED.get(config["optimizer"], ()) if key not in chosen]
    return {**config, **dict.fromkeys(omitted, AUTO)}


def settled(config: dict[str, Any], corpus: Corpus) -> dict[str, Any]:
    """The config with a number for each "auto", which is said; ConfigError without a rule."""
    batch_tokens = corpus.batches.full_batch_size * config["seq_len"]
    num_updates = min(LONG / batch_tokens, last_step(config, corpus.batches))
    features = {
        "width": config["embedding_dim"],
        "updates": max(FEW, num_updates),
        "first_updates": max(1, min(FEW, num_updates)),
        "tokens": len(corpus.train_ids),
        "parameters": num_parameters(config, corpus.vocabulary.size),
    }
    rules = RULES.get(config["adapter"] or config["optimizer"], {})
    if missing := [key for key in OMITTED["muon"] if config[key] == AUTO and key not in rules]:
        raise ConfigError(
            f"config: no rule for {config['optimizer']} ({missing[0]}={AUTO}): set a number"
        )
    found = {key: rule(features) for key, rule in rules.items() if config[key] == AUTO}
    for key, value in found.items() if not config["plan"] else ():  # its model is another
        log(f"auto      {key} {value:g}, by a rule (docs/recipe.md): --{key} sets another")
    return {**config, **found}
