"""What a run shows in TensorBoard, where it is asked for: an extra, with its own server."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from generation.row import printable
from reports.history import History
from reports.jsonl import Line
from system.errors import ConfigError

FOLDER_NAME = "tensorboard"
TAGS = {  # of what is recorded; no counts, for float32 has no odd numbers above 2^24
    "train_loss": "loss/training",
    "val_loss": "loss/validation",
    "perplexity": "loss/perplexity",
    "bits_per_byte": "loss/bits_per_byte",
    "learning_rate": "training/learning_rate",
    "grad_norm": "training/gradient_norm",
    "tokens_per_second": "machine/tokens_per_second",
    "memory_bytes": "machine/gigabytes",
}
NO_TENSORFLOW = "tensorboard.compat.notf"  # where there is such a module, none is imported
MOST_VALUES = 100_000  # of a tensor in a histogram, evenly spread


class TensorBoard:
    """Writes event files from the first line on; what an earlier life wrote after it is purged."""

    def __init__(
        self, folder: Path, head: Callable[[], Line], tensors: Callable[[], dict[str, Tensor]]
    ) -> None:
        sys.modules.setdefault(NO_TENSORFLOW, ModuleType(NO_TENSORFLOW))
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "config: tensorboard=True needs it: pip install tensorboard"
            ) from error
        self.make_writer, self.folder = SummaryWriter, folder / FOLDER_NAME
        self.head, self.tensors = head, tensors
        self.writer: SummaryWriter | None = None

    def __call__(self, history: History, line: Line) -> None:
        """Adds a line; an evaluation also adds its sample and histograms, and is on the disk."""
        step = line["step"]
        if self.writer is None:
            place = self.folder / self.head()["run_id"][:8]
            self.writer = self.make_writer(str(place), purge_step=step)
        for tag, value in scalars_of(line).items():
            self.writer.add_scalar(tag, value, step)
        if line["sample"]:
            indented = "\n".join("    " + row for row in printable(line["sample"]).splitlines())
            self.writer.add_text("sample", indented, step)  # as Markdown's literal text
        if line["val_loss"] is not None:
            for name, tensor in self.tensors().items():
                self.writer.add_histogram(name, few_of(tensor), step)
            self.writer.flush()

    def finish(self, history: History) -> None:
        """Adds the config as hyper-parameters, with the best loss as what became of them."""
        from torch.utils.tensorboard.summary import hparams

        if self.writer is None or not history.evaluations:
            return
        best = best_of(history)
        config = {name: plain(value) for name, value in self.head()["config"].items()}
        for summary in hparams(config, best):
            self.writer.file_writer.add_summary(summary)
        for tag, value in best.items():
            self.writer.add_scalar(tag, value, len(history.train_losses))
        self.writer.close()


def scalars_of(line: Line) -> dict[str, float]:
    """What is known of a line, by tags."""
    known = {tag: line[name] for name, tag in TAGS.items() if line[name] is not None}
    return {tag: value / (1e9 if "gigabytes" in tag else 1) for tag, value in known.items()}


def best_of(history: History) -> dict[str, float]:
    best = history.best
    return {"best/loss": best.loss, "best/bits_per_byte": best.bits_per_byte}


def few_of(tensor: Tensor) -> Tensor:
    values = tensor.detach().flatten()
    return values[:: -(-len(values) // MOST_VALUES)].float().cpu()


def plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, (bool, int, float, str)) else str(value)
