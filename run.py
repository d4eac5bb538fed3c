"""The parts of one training run, and what it does: update, evaluate, save, restore."""

import math
import textwrap
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

import checkpoint
import settings
from corpus import read_corpus
from generate import TextGenerator, printable
from loss import NextTokenLoss
from metrics import Evaluation, History, Progress, bits_per_byte, mean_loss, plot_history
from model import model_size
from optim import build_optimizer, learning_rate_at, set_learning_rate
from runtime import Machine, NonFiniteError, log, seed_step
from tokenizer import GPT2Tokenizer

PLOT_NAME = "training_losses.png"
SAMPLING = {"temperature": 0.8, "top_k": 50, "seed": 0}  # samples differ by the model alone


class Run:
    """One training run: its parts, and `step`, the number of updates made so far.

    Whatever has an order is a function of the step: the batch, the learning rate, the dropout.
    So tensors, the history and one whole number are all that a checkpoint has to hold.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.folder = Path(config["output_dir"])
        self.machine = Machine.choose(config["device"], config["precision"])
        self.tokenizer = GPT2Tokenizer()
        self.corpus = read_corpus(
            Path(), self.tokenizer, config, share_rows=config["share_unused_tokens"]
        )
        self.vocabulary, self.batches = self.corpus.vocabulary, self.corpus.batches
        self.num_steps = config["num_epochs"] * self.batches.num_per_epoch
        settings.check_warmup(config["warmup_steps"], self.num_steps)

        torch.manual_seed(config["seed"])
        self.model = checkpoint.build_model(config, self.vocabulary.size).to(self.machine.device)
        if self.vocabulary.num_shared > 1:  # a shared row starts as the mean of those it replaces
            nn.init.zeros_(self.model.input_embedding.embedding.weight[-1])
        objective = NextTokenLoss(self.model, num_shared=self.vocabulary.num_shared)
        self.objective = self.machine.compiled(objective, config["compile"])
        self.optimizer = build_optimizer(self.model, weight_decay=config["weight_decay"])
        self.scaler = self.machine.gradient_scaler()
        self.val_ids = self.rows(self.corpus.val_ids)

        self.id = uuid.uuid4().hex
        self.step = 0
        self.history = History()
        self.progress = Progress()

    def describe(self) -> str:
        with torch.device("meta"):
            full_size = self.tokenizer.encoding.n_vocab
            size = model_size(checkpoint.build_model(self.config, full_size))
        return (
            f"device    {self.machine}\n{self.corpus}\nmodel     {size}\n"
            f"training  {self.num_steps:,} steps, {self.batches.num_per_epoch:,} an epoch, "
            f"of {self.batches.batch_size} windows of {self.config['seq_len']} tokens"
        )

    def rows(self, ids: Tensor) -> Tensor:
        """Token ids as rows of the model's embedding table, on its device."""
        return self.machine.place(self.vocabulary.compact(ids))

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
        inputs, targets = self.batches[self.step]
        loss = self.accumulate_gradients(self.rows(inputs), self.rows(targets))
        self.scaler.unscale_(self.optimizer)
        norm = clip_grad_norm_(self.model.parameters(), self.config["max_grad_norm"]).item()
        if not math.isfinite(loss) or not (math.isfinite(norm) or self.scaler.is_enabled()):
            text = self.tokenizer.decode(inputs[0].tolist())[:60]
            raise NonFiniteError(
                f"training diverged (loss {loss}, gradient norm {norm} at step {self.step}, "
                f"learning rate {rate:.2g}, batch {text!r}): lower learning_rate"
            )
        self.scaler.step(self.optimizer)
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

    def accumulate_gradients(self, inputs: Tensor, targets: Tensor) -> float:
        """Mean loss of the whole batch; its gradient is summed up micro-batch by micro-batch."""
        micro_size = self.config["batch_size"]
        total = torch.zeros((), device=inputs.device)
        for x, y in zip(inputs.split(micro_size), targets.split(micro_size), strict=True):
            with self.machine.autocast():
                loss = self.objective(x, y, num_tokens=targets.numel())
            self.scaler.scale(loss).backward()
            total += loss.detach()
        return total.item()

    def is_evaluation_due(self) -> bool:
        is_regular = self.step % self.config["eval_freq"] == 0
        is_epoch_end = self.step % self.batches.num_per_epoch == 0
        return (is_regular or is_epoch_end) and not self.history.is_evaluated(self.step)

    def evaluate(self, poll: Callable[[], None]) -> None:
        """Measures the validation loss, keeps the best model, and shows where the run stands."""
        sizes = {name: self.config[name] for name in ("seq_len", "batch_size")}
        with self.machine.autocast():
            loss = mean_loss(self.objective, self.val_ids, **sizes, poll=poll)
        bits = bits_per_byte(loss, len(self.val_ids) - 1, self.corpus.num_val_bytes)
        prompt, length = self.config["sample_prompt"], self.config["sample_tokens"]
        sample = self.text_generator().generate(prompt, length, **SAMPLING, poll=poll)

        evaluation = Evaluation(self.step, self.tokens_seen(self.step), loss, bits)
        self.history.evaluations.append(evaluation)
        log(f"{self.history.report()}  {self.progress}")
        log(textwrap.indent(printable(sample), "    ") + "\n")
        if self.step == 0:
            return  # nothing is learned yet: no best model, no curve
        if self.history.best is evaluation:
            checkpoint.save(self.folder / checkpoint.BEST_NAME, self.model_state())
        self.plot()

    def is_save_due(self) -> bool:
        return self.step % self.config["save_freq"] == 0 and self.step > 0

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
            "history": self.history.state_dict(),
        }

    def text_generator(self) -> TextGenerator:
        """Writes with the model as it is now, over the whole vocabulary."""
        return TextGenerator(checkpoint.model_from(self.model_state()), self.tokenizer)

    def save(self) -> Path:
        """Writes what `restore` needs to go on from here, then drops this run's oldest files."""
        path = checkpoint.step_path(self.folder, self.step)
        moments = {"optimizer_state_dict": self.optimizer.state_dict()["state"]}
        scaler = {"scaler_state_dict": self.scaler.state_dict()}
        checkpoint.save(path, self.model_state() | moments | scaler)
        keep = self.config["keep_checkpoints"]
        checkpoint.remove_old(self.folder, run_id=self.id, keep=keep, last_step=self.step)
        return path

    def restore(self, path: Path) -> None:
        """Takes over what `save` wrote; CheckpointError if it is of another text or model."""
        state = checkpoint.load(path)
        checkpoint.check_same_run(path, state, self.config, self.corpus.text_sha256)
        weights = state["model_state_dict"]
        rows = self.vocabulary.compact_rows(weights[checkpoint.EMBEDDING])
        self.model.load_state_dict({**weights, checkpoint.EMBEDDING: rows})
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict(
            {"state": state["optimizer_state_dict"], "param_groups": groups}
        )
        self.scaler.load_state_dict(state["scaler_state_dict"])
        self.history = History.from_state_dict(state["history"])
        self.step, self.id = state["step"], state["run_id"]

    def plot(self) -> None:
        """Draws the losses; a plot that cannot be written stops no training."""
        path = self.folder / PLOT_NAME
        try:
            plot_history(
                path, self.history, tokens_seen=self.tokens_seen, learning_rate=self.learning_rate
            )
        except OSError as error:
            log(f"warning: no plot ({path}): {error}")
