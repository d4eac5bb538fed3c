"""Generations of a run: a model that has learned what it can teaches a new one, and so on.

On a text that is shown many times a model learns by heart sooner or later, however strong its
decay. A new one that learns from it beside the text goes further (docs/recipe.md).
"""

from typing import Any

from torch import Tensor

from corpus.corpus import Corpus
from storage import checkpoint
from system.errors import ConfigError
from system.process import log
from training.learner import Learner
from training.origin import random_model
from training.parallel import is_launched
from training.settings import AUTO
from training.teacher import Teacher
from training.wanted import learns_anew

PASSES = 13  # of the text, in which a generation learns what it can
LEAST_UPDATES = 300  # fewer teach a model too little for it to be a teacher


class Generations:
    """Which generation a run is in: each has the whole schedule in its share of the run."""

    def __init__(self, config: dict[str, Any], corpus: Corpus, learner: Learner) -> None:
        self.config, self.corpus, self.learner = config, corpus, learner
        self.count = 1  # how many there will be
        self.first_steps = [0]  # how many updates came before each so far
        self.began = 0.0  # the progress of the run when this one did
        if config["generations"] not in (1, AUTO) and learner.engine.is_sharded:
            raise ConfigError(
                f"config: generations={config['generations']} needs a whole model in each process: "
                "set parallel to ddp, or generations to 1"
            )

    @property
    def number(self) -> int:
        """Of this generation, from 0."""
        return len(self.first_steps) - 1

    @property
    def first_step(self) -> int:
        return self.first_steps[-1]

    @property
    def last_of_others(self) -> int:
        """The step of the last evaluation of an earlier model, -1 in the first generation."""
        return self.first_step if self.number else -1

    def num_since(self, step: int) -> int:
        """How many generations have begun since the one that made so many updates."""
        return sum(first >= step for first in self.first_steps[1:])

    def settle(self, num_steps: int | None) -> None:
        """Decides how many there are, as far as it is known how many updates the run will have."""
        wanted = num_generations(self.config, self.corpus, num_steps or 0)
        self.count = max(wanted, self.number + 1)

    def share(self, progress: float) -> float:
        """How much of this generation is done where so much of the run is, both in [0, 1].

        What the run had left when it began is for it and those to come, to like parts.
        """
        of_rest = (progress - self.began) / (1 - self.began)
        return min(1.0, max(0.0, of_rest * (self.count - self.number)))

    def is_over(self, progress: float) -> bool:
        """Whether what follows is for the next generation; one more update is not worth one."""
        return self.number < self.count - 1 and progress < 1 and self.share(progress) >= 1

    def begin_next(self, step: int, progress: float) -> None:
        """Makes the model a teacher, and a new one of what learns."""
        self.first_steps.append(step)
        self.began = progress
        learned = {name: weight.clone() for name, weight in self.learner.engine.weights().items()}
        self.learn_from(learned)
        config = {**self.config, "seed": self.config["seed"] + self.number}
        model, machine = self.learner.model, self.learner.machine
        model.load_state_dict(random_model(config, self.corpus.vocabulary, machine).state_dict())
        log(f"taught    model {self.number + 1} of {self.count} learns from the one before it too")

    def learn_from(self, weights: dict[str, Tensor]) -> None:
        """Has the learner listen to a teacher with these weights."""
        state = {"config": self.config, "model_state_dict": weights}
        model = checkpoint.model_from(state).to(self.learner.machine.device)
        self.learner.learn_from(Teacher(model, num_shared=self.corpus.vocabulary.num_shared))

    def teacher_weights(self) -> dict[str, Tensor]:
        """By name, of a table as compact as the vocabulary; {} in the first generation."""
        teacher = self.learner.loss.teacher
        return teacher.model.state_dict() if teacher else {}

    def state_dict(self, progress: float) -> dict[str, Any]:
        """Which one a run is in that is so far on its way, for a checkpoint."""
        return {"first_steps": self.first_steps, "began": self.began, "progress": progress}

    def restore(self, state: dict[str, Any], weights: dict[str, Tensor], progress: float) -> None:
        """Goes on in the generation of a checkpoint; RuntimeError if the teacher has other shapes.

        The run may have other limits now, so that its `progress` is another, and with it where the
        generation began. Without the weights, nobody teaches the model any more.
        """
        self.first_steps = list(state["first_steps"])
        if state["began"]:  # times exactly 1 where the limits are the same
            self.began = state["began"] * (progress / state["progress"])
        if weights:
            self.learn_from(weights)


def num_passes(config: dict[str, Any], corpus: Corpus, num_steps: float) -> float:
    """How often so many updates show a token of the text."""
    batches = corpus.batches
    windows_an_update = len(batches.dataset) / batches.num_per_epoch
    return num_steps * windows_an_update * config["seq_len"] / len(corpus.train_ids)


def num_generations(config: dict[str, Any], corpus: Corpus, num_steps: int) -> int:
    """How many models so many updates are for: with "auto" several where that was measured."""
    if config["generations"] != AUTO:
        return config["generations"]
    is_spread = config["parallel"] == "fsdp" and is_launched()  # no process has a whole model
    if is_spread or not learns_anew(config) or config["optimizer"] != "muon":
        return 1
    wanted = round(num_passes(config, corpus, num_steps) / PASSES)
    return max(1, min(wanted, num_steps // LEAST_UPDATES))
