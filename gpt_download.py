"""Official GPT-2 files -> checked folder -> arrays under GPT-2's names.

The files come from OpenAI, or else from a mirror: the environment variable GPT2_MIRROR, an address
that has `<size>/<file>`. Files put into `gpt2/<size>/` by hand are as good, after the same checks.
"""

import os
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from system.errors import DownloadError, WeightsError
from system.fetch import RemoteFile, fault_of, fetch
from system.files import as_path, exclusive
from system.process import warn
from weights import Row, check_names, name_rows, nested

BASE_URL = "https://openaipublic.blob.core.windows.net/gpt-2/models"

DATA, INDEX, META = "model.ckpt.data-00000-of-00001", "model.ckpt.index", "model.ckpt.meta"
FILE_NAMES = ("checkpoint", "encoder.json", "hparams.json", INDEX, META, "vocab.bpe", DATA)
SHARED = {  # bytes and SHA-256, as far as they are known
    "encoder.json": (1042301, "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
    "vocab.bpe": (456318, "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
}
FILES_124M = {  # the hashes with a False have one source only
    "checkpoint": (77, "dd1b025d2e155283f5e300ce95bf6d5b6bc0f7fe010db73daa6975eb896ab9cb"),
    "hparams.json": (90, "d9d56e4121c427164e0c55c6f03c08e1daf9002b9b672825112d19097b680318"),
    INDEX: (5215, "71916f763f9746f9b2a06b12d91996cf1084ae008d0424543d39391c5f2dc687", False),
    META: (471155, "4668c448fa11531fd6700460487f73e82d3272960cea942252f8744bf225c77b", False),
    DATA: (497759232, "2060c885360cc0cf41d7a6dbc4d24b5127aae20260c8b5ae521b5a6578407118"),
}
SIZES_355M = {"checkpoint": 77, "hparams.json": 91, INDEX: 10399, META: 926519, DATA: 1419292672}


class OfficialModel(NamedTuple):
    """What is known of a model before anything of it is read."""

    settings: dict[str, int]
    files: dict[str, RemoteFile]


@dataclass(frozen=True)
class Variable:
    """A variable of a checkpoint: looks like an array, and is read when it is sliced."""

    read: Callable[[str], np.ndarray]
    name: str
    stored_shape: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Without the first axis of three: OpenAI's matrices have one that they do not need."""
        return self.stored_shape[1:] if len(self.stored_shape) == 3 else self.stored_shape

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self.read(self.name).reshape(self.shape)[rows]


def _official(num_heads: int, num_layers: int, known: dict[str, tuple[Any, ...]]) -> OfficialModel:
    """A row of MODELS; heads have size 64."""
    settings = {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 64 * num_heads, "n_head": num_heads}
    known = SHARED | known
    files = {name: RemoteFile(*known.get(name, ())) for name in FILE_NAMES}
    return OfficialModel({**settings, "n_layer": num_layers}, files)


MODELS = {
    "124M": _official(12, 12, FILES_124M),
    "355M": _official(16, 24, {name: (size,) for name, size in SIZES_355M.items()}),
    "774M": _official(20, 36, {DATA: (3096120320,)}),
    "1558M": _official(25, 48, {DATA: (6230444800,)}),
}


def download_and_load_gpt2(
    model_size: str = "124M", models_dir: str | Path = "gpt2"
) -> tuple[dict[str, int], dict[str, Any]]:
    """(settings, params) of an official model, fetched into `models_dir` where it is not there."""
    params = as_arrays(official_tensors(model_size, models_dir))
    return dict(MODELS[model_size].settings), params


def official_tensors(model_size: str, models_dir: str | Path = "gpt2") -> dict[str, Variable]:
    """The same by path in the params, checked, but left in the file until they are sliced."""
    if find_spec("tensorflow") is None:
        import_tensorflow()  # says so before gigabytes come that only it can read
    prefix = download_gpt2(model_size, models_dir) / "model.ckpt"
    settings = MODELS[model_size].settings
    try:
        return tensors_in(prefix, settings)
    except (DownloadError, WeightsError) as error:  # right in size, rotten inside
        warn(f"fetching {model_size} again: {error}")
    download_gpt2(model_size, models_dir, again=(INDEX, DATA))
    return tensors_in(prefix, settings)


def download_gpt2(
    model_size: str, models_dir: str | Path = "gpt2", *, again: Collection[str] = ()
) -> Path:
    """The folder with a model's checked files. When it is complete, nothing is requested.

    Files named in `again` are fetched even if they look right, and from the mirror first.
    """
    if model_size not in MODELS:
        raise ValueError(f"no such GPT-2 model ({model_size!r}): choose from {', '.join(MODELS)}")
    files = MODELS[model_size].files
    folder = as_path(models_dir).absolute() / model_size
    if not again and all(fault_of(folder / name, files[name]) is None for name in files):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    sources = (BASE_URL, os.environ.get("GPT2_MIRROR"))
    with exclusive(folder / ".lock"):  # a second process waits here, and finds the files
        wanted = [name for name in files if name in again or fault_of(folder / name, files[name])]
        for position, name in enumerate(wanted):
            urls = [f"{source.rstrip('/')}/{model_size}/{name}" for source in sources if source]
            try:
                fetch(urls[::-1] if again else urls, folder / name, files[name])
            except DownloadError as error:
                missing = ", ".join(wanted[position:])
                raise DownloadError(
                    f"cannot fetch {name} ({error}): try again later, set GPT2_MIRROR to "
                    f"another address, or put {missing} into {folder} by hand"
                ) from error
    return folder


def load_gpt2_params_from_tf_ckpt(
    ckpt_path: str | Path, settings: dict[str, int]
) -> dict[str, Any]:
    """The params of the checkpoint with this prefix; WeightsError if it has other variables."""
    return as_arrays(tensors_in(as_path(ckpt_path), settings))


def as_arrays(variables: dict[str, Variable]) -> dict[str, Any]:
    """The params, in memory."""
    return nested({name: variable[:] for name, variable in variables.items()})


def tensors_in(path: Path, settings: dict[str, int]) -> dict[str, Variable]:
    """Every variable of a checkpoint by its path in the params; TensorFlow finds each undamaged.

    WeightsError if it has other variables, DownloadError if it is damaged.
    """
    rows = name_rows(settings["n_layer"])
    if path.is_dir():  # where TensorFlow would follow the file `checkpoint` anywhere
        raise WeightsError(f"a folder ({path}): give its checkpoint's prefix, as in model.ckpt")
    tf = import_tensorflow()
    try:
        reader = tf.train.load_checkpoint(str(path))
        shapes = reader.get_variable_to_shape_map()
        check_names(map(variable_name, rows), shapes, str(path))
        for row in rows:
            reader.get_tensor(variable_name(row))
    except tf.errors.OpError as error:
        raise DownloadError(
            f"not a whole TensorFlow checkpoint ({path}: {error.message}): fetch it again"
        ) from error
    read = lru_cache(maxsize=1)(reader.get_tensor)
    names = {row: variable_name(row) for row in rows}
    return {row.gpt2: Variable(read, name, tuple(shapes[name])) for row, name in names.items()}


def variable_name(row: Row) -> str:
    """OpenAI's name: blocks.3.ln_1.g -> model/h3/ln_1/g."""
    place = "model/ln_f/" if row.gpt2 in ("g", "b") else "model/"
    return place + row.gpt2.replace("blocks.", "h").replace(".", "/")


def import_tensorflow() -> Any:
    """TensorFlow, without what it prints on the way; DownloadError says how to get it."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import tensorflow
    except ImportError as error:
        raise DownloadError(
            f"reading OpenAI's checkpoints needs tensorflow ({error}): pip install tensorflow with "
            "a Python below 3.14, or fine-tune from a Hugging Face folder with --weights_path"
        ) from error
    return tensorflow
