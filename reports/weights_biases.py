"""What a run shows in Weights & Biases, where it is asked for: an extra, offline by itself."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from reports.history import History
from reports.html import text
from reports.jsonl import Line
from reports.tensorboard import best_of, few_of, scalars_of
from system.errors import ConfigError

QUIET = {  # no look at streams, machine and code
    "console": "off",
    "silent": True,
    "disable_git": True,
    "disable_job_creation": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
}


class WeightsAndBiases:
    """Writes into the folder `wandb`; WANDB_MODE=online in the environment sends it as well."""

    def __init__(
        self, folder: Path, head: Callable[[], Line], tensors: Callable[[], dict[str, Tensor]]
    ) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # no reports of crashes to others
        try:
            import wandb

            self.settings = wandb.Settings(**QUIET)
        except (ImportError, AttributeError) as error:  # a folder of that name is no package
            raise ConfigError("config: wandb=True needs it: pip install wandb") from error
        self.wandb, self.folder, self.head, self.tensors = wandb, folder, head, tensors
        self.run: Any = None

    def __call__(self, history: History, line: Line) -> None:
        """Adds a line; an evaluation also adds its sample and histograms."""
        if self.run is None:
            head, mode = self.head(), os.environ.get("WANDB_MODE", "offline")
            name = {"id": head["run_id"][:8], "name": str(self.folder), "resume": "allow"}
            what = {"config": head["config"], "mode": mode, "dir": self.folder}
            self.run = self.wandb.init(project="gpt", settings=self.settings, **name, **what)
        found = scalars_of(line)
        if line["sample"]:
            found["sample"] = self.wandb.Html(f"<pre>{text(line['sample'])}</pre>", inject=False)
        if line["val_loss"] is not None:
            for name, tensor in self.tensors().items():
                found[name] = self.wandb.Histogram(few_of(tensor).numpy())
        self.run.log(found, step=line["step"])

    def finish(self, history: History) -> None:
        """Adds the best loss, and closes the files."""
        if self.run is not None:
            self.run.summary.update(best_of(history))
            self.run.finish()
