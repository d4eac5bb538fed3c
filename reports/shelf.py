"""The models that the playground offers: those of runs, as they come, and official ones."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch

from generation.fast_weights import prepared
from generation.generator import TextGenerator
from generation.row import printable
from model import Transformer
from storage import checkpoint
from storage.run_folder import models_in
from system.errors import CheckpointError
from tokenizer import GPT2Tokenizer

KEPT = 2  # models in memory: as many as are shown side by side


class Shelf:
    """Models by name; CheckpointError where there is none at all.

    Each look finds what is there by then: a running training adds checkpoints and deletes others.
    """

    def __init__(
        self,
        places: Sequence[Path],
        official: Mapping[str, Callable[[], Transformer]],
        *,
        precision: str,
        device: torch.device,
    ) -> None:
        self.places, self.official = places, official
        self.precision, self.device = precision, device
        self.load = lru_cache(KEPT)(self._load)
        if not self.names():
            raise CheckpointError(
                f"no model ({', '.join(map(str, places))}): train one with python train.py, "
                "or choose --model gpt2-small"
            )

    def names(self) -> list[str]:
        """What can be chosen, the newest model of each folder before all its files."""
        return [*self._paths(), *self.official]

    def writer(self, name: str) -> tuple[str, TextGenerator]:
        """What the model of that name is, and what writes with it; loaded where that is new."""
        if name in self.official:
            return self.load(name, 0)
        path = self._paths().get(name)
        if path is None:
            raise CheckpointError(f"no such model ({printable(name):.99}): choose another one")
        with checkpoint.named(path):
            return self.load(path, path.stat().st_mtime_ns)

    def _paths(self) -> dict[str, Path]:
        found = {}
        for place in self.places:
            paths = models_in(place) if place.is_dir() else [place] * place.exists()
            newest = {f"newest of {place.resolve().name}": path for path in paths[:1]}
            found |= (newest if place.is_dir() else {}) | {str(path): path for path in paths}
        return {printable(name): path for name, path in found.items()}

    def _load(self, source: Path | str, stamp: int) -> tuple[str, TextGenerator]:
        title = str(source)
        if source in self.official:
            model = self.official[source]()
        else:
            state = checkpoint.load(source)
            model = checkpoint.model_from(state, source)
            title += f", step {state['step']:,}" if "step" in state else ""
        model = prepared(model, self.precision, self.device)
        return title, TextGenerator(model, GPT2Tokenizer())
