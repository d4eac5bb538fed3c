"""One training run: which batch and rate an update has, and what is due at a step."""

import math
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor

from adapters.lora import adapter_weights
from corpus.baselines import in_background
from corpus.corpus import Corpus
from reports import html, plot, runs, terminal
from reports.history import Evaluation, History, UpdateRecord, in_time, pace_of
from reports.jsonl import LOG_FREQ, HistoryFile, line_of
from reports.tensorboard import TensorBoard
from reports.weights_biases import WeightsAndBiases
from storage import checkpoint
from storage.run_folder import HISTORY_NAME, PLOT_NAME, REPORT_NAME
from system.errors import NonFiniteError
from system.process import log, only_warn, warn
from tokenizer import GPT2Tokenizer
from training.averages import Averages
from training.engines import whole
from training.generations import Generations
from training.learner import Learner, dropout_seeds
from training.progress import Progress
from training.rules import is_decided, settled
from training.schedule import learning_rate_at, tolerance_at

BASELINES_SECONDS = 1.0  # that a report waits for them: on a large text the first has none
NUM_PACED = 20  # updates of a process that tell how long the rest will take


class Run:
    """A learner on its way through a corpus: `step` is the number of updates made so far.

    Whatever has an order is a function of the step: the batch, the learning rate, the dropout.
    So tensors, the history and one whole number are all that a checkpoint has to hold.
    """

    def __init__(
        self, config: dict[str, Any], script: dict[str, Any], corpus: Corpus, learner: Learner
    ) -> None:
        self.config = {**config, "resume": False}  # how it was started is no property of the run
        self.script = script  # the dict of train.py as it was at the start
        self.corpus, self.learner, self.team = corpus, learner, learner.team
        self.folder = Path(config["output_dir"])
        self.tokenizer = GPT2Tokenizer()
        self.progress = Progress(config, corpus.batches, self.team)
        self.val_rows = learner.machine.place(corpus.vocabulary.compact(corpus.val_ids))
        self.averages = Averages(learner.model, learner.engine, config["average_weights"])
        self.generations = Generations(config, corpus, learner)
        self.generations.settle(self.progress.expected_steps(0))
        self.resident_bytes = 0  # of the process before it had the model
        self.base = ""  # what adapters stand beside, as `base_id` has it
        self.id = self.team.gather(uuid.uuid4().hex)[0]
        self.step = 0
        self.saved_step = 0  # there is nothing to save of step 0
        self.saved_path = self.folder
        self.history = History()
        self.baselines: Callable[[float], dict[str, float]] = lambda seconds: {}
        self.recent: deque[UpdateRecord] = deque(maxlen=50)
        self.pace = ""
        self.about: dict[str, Any] = {}  # what the run consists of, as its start has said
        self.told_step = 0  # of the latest line
        self.recorders = {HISTORY_NAME: HistoryFile(self.folder / HISTORY_NAME, self.head)}
        for name, recorder in {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}.items():
            if config[name]:
                self.recorders[name] = recorder(self.folder, self.head, learner.tensors)
        self.sinks = {  # all that shows the run, each by the name of what would be missing
            "report": terminal.show,
            PLOT_NAME: partial(plot.draw, self.folder / PLOT_NAME, self.caption),
        }
        self._placing = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._placed: Future | None = None  # the batch of the next step

    def start_baselines(self) -> None:
        """Looks for them in the background, where they are not known yet."""
        self.baselines = in_background(self.corpus.baselines if self.team.is_first else dict)

    def settle(self) -> None:
        """Decides what follows from how many updates there will be, as the pace tells it."""
        num_steps = self.progress.expected_steps(self.step)
        self.generations.settle(num_steps)
        if num_steps is None:
            return
        if not is_decided(self.config):
            given = {"num_steps": num_steps, "is_paced": True}
            self.config = settled(self.config, self.corpus, **given)
            self.learner.regularize(self.config)
        num_each, warmup_steps = num_steps // self.generations.count, self.config["warmup_steps"]
        if warmup_steps > max(num_each, self.step - self.generations.first_step):
            warn(
                f"the rate will not reach its height: warmup_steps={warmup_steps} is more than the "
                f"{num_each} updates that there is time for: lower it"
            )

    def learning_rate(self, step: int) -> float:
        names = ("learning_rate", "warmup_steps", "lr_schedule", "lr_min_ratio")
        given = {name: self.config[name] for name in names}
        return learning_rate_at(step - self.generations.first_step, self.share(step), **given)

    def share(self, step: int) -> float:
        """How much of the schedule is done at the step."""
        return self.generations.share(self.progress_at(step))

    def progress_at(self, step: int) -> float:
        """Past the warm-up of the only model; where there are several, each has its own."""
        is_alone = self.generations.count == 1
        return self.progress.at(step, warmup_steps=self.config["warmup_steps"] * is_alone)

    def is_generation_over(self) -> bool:
        return self.generations.is_over(self.progress_at(self.step))

    def update(self) -> None:
        """Makes one update of the weights: batch number `step` at the rate of that step."""
        self.progress.start(self.step)
        if self.is_generation_over():
            self.generations.begin_next(self.step, self.progress_at(self.step))
            self.averages.restart()
        rate, progress = self.learning_rate(self.step), self.share(self.step)
        inputs, targets = self.next_batch()
        seeds = dropout_seeds(self.config["seed"], self.step, len(inputs))
        share = len(inputs) / self.corpus.batches.full_batch_size
        try:
            with self.progress.timed("update"):
                record = self.learner.update(
                    inputs, targets, learning_rate=rate, seeds=seeds, share=share
                )
        except NonFiniteError as error:
            text = self.tokenizer.decode(self.corpus.batches[self.step][0][0].tolist())[:60]
            raise NonFiniteError(
                f"training diverged ({error} at step {self.step}, learning rate {rate:.2g}, "
                f"batch {text!r}): lower learning_rate"
            ) from error
        self.averages.add(self.step - self.generations.first_step, progress)
        self.step += 1
        self.history.add(record)
        self.recent.append(record)
        self.pace = pace_of(self.recent)
        self.progress.read()
        if len(self.recent) == NUM_PACED:
            seconds = median(record.seconds for record in self.recent)
            left = seconds * (self.progress.last_step - self.step)
            left = in_time(min(left, self.progress.seconds - self.progress.used))
            log(f"pace      about {in_time(seconds)} a step, {left} to go")
            self.settle()
        if self.step % LOG_FREQ == 0 and not self.is_evaluation_due():
            self.tell()

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """This step's batch; the one after it is prepared meanwhile, so that no device waits."""
        batch = self._placed or self._placing.submit(self.batch, self.step)
        self._placed = self._placing.submit(self.batch, self.step + 1)
        return batch.result()

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T) of a step as rows of the model's table, on the device."""
        batch = self.corpus.batch(step, rare_as_unused=self.config["rare_as_unused"])
        inputs, targets = map(self.learner.machine.place, batch)
        return inputs, targets

    def is_evaluation_due(self) -> bool:
        is_regular = self.step % self.config["eval_freq"] == 0
        is_epoch_end = self.step % self.corpus.batches.num_per_epoch == 0
        is_end = self.is_generation_over() or self.progress.is_over(self.step)
        is_due = is_regular or is_epoch_end or is_end or not self.history.judged
        return is_due and self.step not in [done.step for done in self.history.judged]

    def is_save_due(self) -> bool:
        is_regular = self.step % self.config["save_freq"] == 0
        return (is_regular or self.is_over()) and self.step != self.saved_step

    def is_over(self) -> bool:
        return self.progress.is_over(self.step) or self.is_stuck()

    def is_stuck(self) -> bool:
        """Whether the evaluation of this step is one too many without a better one."""
        is_judged = self.step in [done.step for done in self.history.judged[-1:]]
        if not (self.config["patience"] and is_judged):
            return False
        given = {name: self.config[name] for name in ("lr_schedule", "lr_min_ratio")}
        tolerance = tolerance_at(self.share(self.step), **given)
        num_no_better = self.history.num_no_better(tolerance, after=self.generations.last_of_others)
        if self.is_generation_over():
            num_no_better = max(num_no_better, self.generations.num_since(self.history.best.step))
        return num_no_better >= self.config["patience"]

    def record(self, loss: float) -> None:
        """Takes an evaluation into the history: that of the weights, or of better averages."""
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"training diverged (validation loss {loss} at step {self.step}, learning rate "
                f"{self.learning_rate(self.step):.2g}): lower learning_rate"
            )
        is_averaged = self.averages.loss < loss
        loss, other = sorted([loss, self.averages.loss])
        bits = loss * int(self.corpus.is_predicted.sum()) / math.log(2) / self.corpus.num_val_bytes
        tokens_seen = sum(self.history.num_tokens)
        both = {"other_loss": other, "is_averaged": is_averaged} if self.averages.values else {}
        self.history.evaluations.append(Evaluation(self.step, tokens_seen, loss, bits, **both))

    def report(self, sample: str) -> None:
        """Hands the latest evaluation to everything that shows it; none of them stops training."""
        if not self.team.is_first:
            return
        self.history.baselines = self.baselines(BASELINES_SECONDS)
        for name, show in self.sinks.items():
            with only_warn(f"no {name}", (Exception,)):
                show(self.history, self.pace, sample)
        self.tell(sample)

    def tell(self, sample: str = "") -> None:
        """Hands what is new since the last time to everything that records it."""
        if not self.team.is_first:
            return
        what = {"recent": self.recent, "sample": sample}
        line = line_of(self.history, self.told_step, self.step, **what)
        self.told_step = self.step
        for name, record in self.recorders.items():
            with only_warn(f"no {name}", (Exception,)):
                record(self.history, line)

    def caption(self) -> plot.Caption:
        is_cut_short = self.is_over() and not self.progress.is_over(self.step)
        ending = f"stopped at {self.progress.place(self.step)}" if is_cut_short else ""
        return plot.Caption(self.about.get("title", ""), ending)

    def head(self) -> dict[str, Any]:
        """What the run is, for the files that record it."""
        return {
            "run_id": self.id,
            "num_steps": self.progress.expected_steps(self.step),
            "config": self.config,
            **self.about,
        }

    def full_weights(self, *, averaged: bool = False) -> dict[str, Tensor]:
        """The model's weights, or their averages, with a row for every token of the vocabulary."""
        with self.averages.in_place(averaged):
            weights = self.learner.engine.weights()
            if averaged:
                weights = {name: weight.clone() for name, weight in weights.items()}
        table = self.corpus.vocabulary.expand(weights[checkpoint.EMBEDDING])
        return {**weights, checkpoint.EMBEDDING: table}

    def adapters(self, *, averaged: bool = False) -> dict[str, Tensor]:
        """What the adapters have learned, or its averages, by name; all processes have to ask."""
        with self.averages.in_place(averaged):
            weights = {n: whole(w) for n, w in adapter_weights(self.learner.model).items()}
            return {n: w.clone() for n, w in weights.items()} if averaged else weights

    def write_report(self) -> None:
        """Puts all that the run has shown into one page."""
        if not self.team.is_first:
            return
        for name, record in self.recorders.items():
            with only_warn(f"no end of {name}", (Exception,)):
                record.finish(self.history)
        self.write_page()

    def write_page(self) -> None:
        """Writes the page as it is by now."""
        if self.team.is_first:
            with only_warn(f"no {REPORT_NAME}", (Exception,)), self.progress.timed("report"):
                html.write(self.folder / REPORT_NAME, [runs.load(self.folder)])
