"""The parts of one training run, and what it does: update, evaluate, save, restore."""

import math
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from corpus.corpus import read_corpus
from corpus.vocabulary import Vocabulary
from data import Batches
from generation.generator import TextGenerator
from generation.row import printable
from generation.settings import SAMPLE
from model import model_size
from reports.history import Evaluation, History, Progress
from reports.plot import plot_history
from storage import checkpoint, run_folder
from system.errors import CheckpointError, NonFiniteError
from system.machine import Machine, seed_step, tune_process
from system.process import describe, log
from tokenizer import TABLE_SHA256, GPT2Tokenizer
from training import capacity, settings
from training.evaluation import bits_per_byte, mean_loss
from training.loss import NextTokenLoss
from training.optim import build_optimizer, clip_gradients
from training.schedule import learning_rate_at, set_learning_rate

PLOT_NAME = "training_losses.png"
SAMPLING = {**SAMPLE, "seed": 0}  # samples differ by the model alone


def placed_batch(
    batches: Batches, vocabulary: Vocabulary, machine: Machine, step: int
) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a step as rows of the model's embedding table, on its device."""
    inputs, targets = map(vocabulary.compact, batches[step])
    return machine.place(inputs), machine.place(targets)


class Run:
    """One training run: its parts, and `step`, the number of updates made so far.

    Whatever has an order is a function of the step: the batch, the learning rate, the dropout.
    So tensors, the history and one whole number are all that a checkpoint has to hold.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = {**config, "resume": False}  # how it was started is no property of the run
        self.folder = Path(config["output_dir"])
        tune_process()
        self.machine = Machine.choose(config["device"], config["precision"])
        self.tokenizer = GPT2Tokenizer()
        self.corpus = read_corpus(config, self.tokenizer, share_rows=config["share_unused_tokens"])
        self.vocabulary, self.batches = self.corpus.vocabulary, self.corpus.batches
        self.num_steps = config["num_epochs"] * self.batches.num_per_epoch
        settings.check_warmup(config["warmup_steps"], self.num_steps)
        self.check_room()

        torch.manual_seed(config["seed"])
        self.model = checkpoint.build_model(config, self.vocabulary.size).to(self.machine.device)
        if self.vocabulary.num_shared > 1:  # a shared row starts as the mean of those it replaces
            nn.init.zeros_(self.model.input_embedding.embedding.weight[-1])
        objective = NextTokenLoss(self.model, num_shared=self.vocabulary.num_shared)
        self.objective = self.machine.compiled(objective, config["compile"])
        self.optimizer = build_optimizer(self.model, weight_decay=config["weight_decay"])
        self.scaler = self.machine.gradient_scaler()
        self.val_ids = self.machine.place(self.vocabulary.compact(self.corpus.val_ids))
        self.placed_batch = lru_cache(maxsize=2)(  # this step's and the next one's
            partial(placed_batch, self.batches, self.vocabulary, self.machine)
        )

        self.id = uuid.uuid4().hex
        self.step = 0
        self.saved_step = 0  # there is nothing to save of step 0
        self.history = History()
        self.progress = Progress()

    def check_room(self) -> None:
        """Raises if the memory or the disk is too small for the run."""
        num_rows = self.vocabulary.size
        capacity.check_memory(
            self.config,
            num_rows=num_rows,
            num_windows=len(self.batches.dataset),
            device=self.machine.device,
            dtype=self.machine.dtype,
        )
        capacity.check_disk(
            self.folder,
            self.config,
            num_rows=num_rows,
            vocab_size=self.tokenizer.encoding.n_vocab,
            num_steps=self.num_steps,
        )

    def describe(self) -> str:
        with torch.device("meta"):
            full_size = self.tokenizer.encoding.n_vocab
            size = model_size(checkpoint.build_model(self.config, full_size))
        return (
            f"device    {self.machine}\n{self.corpus}\nmodel     {size}\n"
            f"training  {self.num_steps:,} steps, {self.batches.num_per_epoch:,} an epoch, "
            f"of {self.batches.batch_size} windows of {self.config['seq_len']} tokens"
        )

    def learning_rate(self, step: int) -> float:
        names = ("learning_rate", "warmup_steps", "lr_schedule", "lr_min_ratio")
        return learning_rate_at(step, self.num_steps, **{name: self.config[name] for name in names})

    def tokens_seen(self, step: int) -> int:
        return self.batches.num_windows_before(step) * self.config["seq_len"]

    def update(self) -> None:
        """Makes one update of the weights: batch number `step`, its gradient, the optimizer."""
        start = time.perf_counter()
        seed_step(self.config["seed"], self.step)
        rate = self.learning_rate(self.step)
        set_learning_rate(self.optimizer, rate)
        inputs, targets = self.placed_batch(self.step)
        loss = self.accumulate_gradients(inputs, targets)
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.model.parameters(), self.config["max_grad_norm"])
        self.placed_batch(self.step + 1)  # while a GPU still computes, so that it never waits
        loss, norm = torch.stack([loss, norm]).tolist()  # the only wait for a GPU in a step
        if not math.isfinite(loss) or not (math.isfinite(norm) or self.can_scale_down()):
            text = self.tokenizer.decode(self.batches[self.step][0][0].tolist())[:60]
            raise NonFiniteError(
                f"training diverged (loss {loss}, gradient norm {norm} at step {self.step}, "
                f"learning rate {rate:.2g}, batch {text!r}): lower learning_rate"
            )
        if math.isfinite(norm):
            self.scaler.step(self.optimizer)
        else:
            self.history.num_skipped += 1
        self.scaler.update()
        self.optimizer.zero_grad()
        self.step += 1
        self.history.train_losses.append(loss)
        self.progress.add(
            loss=loss,
            learning_rate=rate,
            grad_norm=norm,
            num_tokens=targets.numel(),
            seconds=time.perf_counter() - start,
            memory_bytes=self.machine.memory_in_use(),
        )

    def can_scale_down(self) -> bool:
        """Whether a gradient that overflowed may be one of float16 that was scaled too far up."""
        return self.scaler.is_enabled() and self.scaler.get_scale() >= 1

    def accumulate_gradients(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of the whole batch; its gradient is summed up micro-batch by micro-batch."""
        micro_size = self.config["batch_size"]
        total = torch.zeros((), device=inputs.device)
        for x, y in zip(inputs.split(micro_size), targets.split(micro_size), strict=True):
            with self.machine.autocast():
                loss = self.objective(x, y, num_tokens=targets.numel())
            self.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def is_evaluation_due(self) -> bool:
        is_regular = self.step % self.config["eval_freq"] == 0
        is_epoch_end = self.step % self.batches.num_per_epoch == 0
        return (is_regular or is_epoch_end) and not self.history.is_evaluated(self.step)

    def evaluate(self, poll: Callable[[], None]) -> None:
        """Measures the validation loss, keeps the best model, and shows where the run stands."""
        sizes = {name: self.config[name] for name in ("seq_len", "batch_size")}
        with self.machine.autocast():
            loss = mean_loss(self.objective, self.val_ids, **sizes, poll=poll)
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"training diverged (validation loss {loss} at step {self.step}, learning rate "
                f"{self.learning_rate(self.step):.2g}): lower learning_rate"
            )
        bits = bits_per_byte(loss, len(self.val_ids) - 1, self.corpus.num_val_bytes)
        prompt, length = self.config["sample_prompt"], self.config["sample_tokens"]
        sample = self.text_generator().generate(prompt, length, **SAMPLING)

        evaluation = Evaluation(self.step, self.tokens_seen(self.step), loss, bits)
        self.history.evaluations.append(evaluation)
        log(f"{self.history.report()}  {self.progress}")
        log(textwrap.indent(printable(sample), "    ") + "\n")
        if self.step == 0:
            return  # nothing is learned yet: no best model, no curve
        if self.history.best is evaluation:
            with only_warn(f"no {checkpoint.BEST_NAME} of step {self.step}"):
                checkpoint.save(self.folder / checkpoint.BEST_NAME, self.model_state())
        with only_warn(f"no {PLOT_NAME}"):
            self.plot()

    def is_save_due(self) -> bool:
        is_regular = self.step % self.config["save_freq"] == 0
        return (is_regular or self.is_over()) and self.step != self.saved_step

    def is_over(self) -> bool:
        patience = self.config["patience"]
        is_stuck = 0 < patience <= self.history.num_evaluations_since_best
        return self.step == self.num_steps or is_stuck

    def model_state(self) -> dict[str, Any]:
        """The model as every file holds it: config, all the rows, how it came about."""
        weights = self.model.state_dict()
        table = self.vocabulary.expand(weights[checkpoint.EMBEDDING])
        return {
            "config": self.config,
            "model_state_dict": {**weights, checkpoint.EMBEDDING: table},
            "step": self.step,
            "run_id": self.id,
            "text_sha256": self.corpus.text_sha256,
            "tokenizer_sha256": TABLE_SHA256,
            "history": self.history.state_dict(),
        }

    def text_generator(self) -> TextGenerator:
        """Writes with the model as it is now, over the whole vocabulary."""
        return TextGenerator(checkpoint.model_from(self.model_state()), self.tokenizer)

    def save(self) -> Path:
        """Writes what `restore` needs to go on from here, then drops this run's oldest files."""
        moments = {"optimizer_state_dict": self.optimizer.state_dict()["state"]}
        scaler = {"scaler_state_dict": self.scaler.state_dict()}
        path = run_folder.save_step(self.folder, self.model_state() | moments | scaler)
        self.saved_step = self.step
        self.remove_old()
        return path

    def remove_old(self) -> None:
        keep = self.config["keep_checkpoints"]
        run_folder.remove_old(self.folder, run_id=self.id, step=self.step, keep=keep)

    def try_to_save(self) -> None:
        """Saves; a disk without room stops no training, and the next interval tries again."""
        with only_warn(f"no checkpoint of step {self.step}"):
            self.save()

    def leave(self) -> str:
        """Saves what is not saved yet; how to go on from here."""
        if self.step != self.saved_step:
            self.save()
        if self.step == 0:
            return " before the first step, nothing to save"
        path = checkpoint.step_path(self.folder, self.step)
        return f" after step {self.step}, saved {path}: continue with the same command and --resume"

    def final_state(self) -> dict[str, Any]:
        """The model of the last step, or with `patience` that of the best evaluation."""
        best, path = self.history.best, self.folder / checkpoint.BEST_NAME
        if not self.config["patience"] or not 0 < best.step < self.step:
            return self.model_state()
        try:
            state = checkpoint.load(path)
            if History.from_state_dict(state["history"]).evaluations[-1] != best:
                raise CheckpointError(f"another run's model ({path})")
        except (CheckpointError, OSError) as error:
            log(f"warning   the final model is that of the last step, not the best: {error}")
            return self.model_state()
        log(f"best loss {best.loss:.3f} at step {best.step}: the final model has these weights")
        return state

    def plot(self) -> None:
        plot_history(
            self.folder / PLOT_NAME,
            self.history,
            tokens_seen=self.tokens_seen,
            learning_rate=self.learning_rate,
        )


@contextmanager
def only_warn(loss: str) -> Iterator[None]:
    """A file that cannot be written is a warning inside: training goes on without it."""
    try:
        yield
    except (ImportError, OSError) as error:
        log(f"warning   {loss}: {describe(error)}")
