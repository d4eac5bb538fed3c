"""Official GPT-2 files -> checked folder -> arrays under GPT-2's names.

The files come from OpenAI, or else from a mirror: the environment variable GPT2_MIRROR, an address
that has `<size>/<file>`. Files put into `gpt2/<size>/` by hand are as good, after the same checks.
"""

import os
import sys
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch

from model import build_transformer
from system.errors import ContentError, DownloadError
from system.fetch import RemoteFile, fault_of, fetch
from system.files import as_path, exclusive
from system.process import warn
from weights import Row, architecture_from, gpt2_weights, listed, name_rows, nested

BASE_URL = "https://openaipublic.blob.core.windows.net/gpt-2/models"
MIRROR_VARIABLE = "GPT2_MIRROR"
NO_TENSORFLOW_FROM = (3, 14)  # the first Python that it has no wheel for

DATA, INDEX, META = "model.ckpt.data-00000-of-00001", "model.ckpt.index", "model.ckpt.meta"
FILE_NAMES = ("checkpoint", "encoder.json", "hparams.json", INDEX, META, "vocab.bpe", DATA)
SHARED_SIZES = {"encoder.json": 1042301, "vocab.bpe": 456318}
SHARED_SHA256 = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
SHA256_124M = {
    "checkpoint": "dd1b025d2e155283f5e300ce95bf6d5b6bc0f7fe010db73daa6975eb896ab9cb",
    "hparams.json": "d9d56e4121c427164e0c55c6f03c08e1daf9002b9b672825112d19097b680318",
    INDEX: "71916f763f9746f9b2a06b12d91996cf1084ae008d0424543d39391c5f2dc687",
    META: "4668c448fa11531fd6700460487f73e82d3272960cea942252f8744bf225c77b",
    DATA: "2060c885360cc0cf41d7a6dbc4d24b5127aae20260c8b5ae521b5a6578407118",
}
UNCONFIRMED = (INDEX, META)  # one source only for their hashes


class OfficialModel(NamedTuple):
    """What is known of a model before anything of it is read."""

    settings: dict[str, int]
    files: dict[str, RemoteFile]


def _official(
    n_embd: int, n_head: int, n_layer: int, sizes: dict[str, int], hashes: dict[str, str]
) -> OfficialModel:
    """A row of MODELS; a size or hash that is in no table is not known."""
    settings = {"n_vocab": 50257, "n_ctx": 1024, "n_embd": n_embd, "n_head": n_head}
    sizes, hashes = SHARED_SIZES | sizes, SHARED_SHA256 | hashes
    files = {
        name: RemoteFile(sizes.get(name), hashes.get(name), name not in UNCONFIRMED)
        for name in FILE_NAMES
    }
    return OfficialModel({**settings, "n_layer": n_layer}, files)


SIZES_124M = {"checkpoint": 77, "hparams.json": 90, INDEX: 5215, META: 471155, DATA: 497759232}
SIZES_355M = {"checkpoint": 77, "hparams.json": 91, INDEX: 10399, META: 926519, DATA: 1419292672}
MODELS = {
    "124M": _official(768, 12, 12, SIZES_124M, SHA256_124M),
    "355M": _official(1024, 16, 24, SIZES_355M, {}),
    "774M": _official(1280, 20, 36, {DATA: 3096120320}, {}),
    "1558M": _official(1600, 25, 48, {DATA: 6230444800}, {}),
}


def download_and_load_gpt2(
    model_size: str = "124M", models_dir: str | Path = "gpt2"
) -> tuple[dict[str, int], dict[str, Any]]:
    """(settings, params) of an official model, fetched into `models_dir` where it is not there."""
    import_tensorflow()  # before gigabytes come that only it can read
    prefix = download_gpt2(model_size, models_dir) / "model.ckpt"
    settings = dict(MODELS[model_size].settings)
    try:
        return settings, load_gpt2_params_from_tf_ckpt(prefix, settings)
    except (DownloadError, ContentError) as error:  # right in size, rotten inside
        warn(f"fetching {model_size} again: {error}")
    download_gpt2(model_size, models_dir, again=(INDEX, DATA))
    return settings, load_gpt2_params_from_tf_ckpt(prefix, settings)


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
    with exclusive(folder / ".lock"):  # a second process waits here, and finds the files
        wanted = [name for name in files if name in again or fault_of(folder / name, files[name])]
        for position, name in enumerate(wanted):
            urls = [f"{source}/{model_size}/{name}" for source in _sources()]
            try:
                fetch(urls[::-1] if again else urls, folder / name, files[name])
            except DownloadError as error:
                missing = ", ".join(wanted[position:])
                raise DownloadError(
                    f"cannot fetch {name} ({error}): try again later, set {MIRROR_VARIABLE} to "
                    f"another address, or put {missing} into {folder} by hand"
                ) from error
    return folder


def _sources() -> list[str]:
    addresses = (BASE_URL, os.environ.get(MIRROR_VARIABLE, ""))
    return [address.rstrip("/") for address in addresses if address]


def load_gpt2_params_from_tf_ckpt(
    ckpt_path: str | Path, settings: dict[str, int]
) -> dict[str, Any]:
    """The params of the checkpoint with this prefix, which must have just the variables it should.

    One variable at a time, the largest first: the peak is little more than the weights.
    """
    path = as_path(ckpt_path)
    if path.is_dir():  # where TensorFlow would follow the file `checkpoint` anywhere
        raise ContentError(f"a folder ({path}): give its checkpoint's prefix, as in model.ckpt")
    tf = import_tensorflow()
    try:
        reader = tf.train.load_checkpoint(str(path))
        _check_variables(reader, settings)
        rows = name_rows(settings["n_layer"])
        arrays = {row: reader.get_tensor(variable_name(row)) for row in rows}
    except tf.errors.OpError as error:
        raise DownloadError(
            f"not a whole TensorFlow checkpoint ({path}: {error.message}): fetch it again"
        ) from error
    return nested({row.gpt2: a[0] if row.is_transposed else a for row, a in arrays.items()})


def variable_shapes(settings: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Every variable of an official checkpoint and its shape; matrices are (1, in, out)."""
    sizes = architecture_from(settings)
    with torch.device("meta"):
        model = build_transformer(settings["n_vocab"], sizes.pop("seq_len"), **sizes)
    return {
        variable_name(row): (1, *weight.shape) if row.is_transposed else tuple(weight.shape)
        for row, weight in gpt2_weights(model).items()
    }


def variable_name(row: Row) -> str:
    """OpenAI's name: blocks.3.ln_1.g -> model/h3/ln_1/g."""
    place = "model/ln_f/" if row.gpt2 in ("g", "b") else "model/"
    return place + row.gpt2.replace("blocks.", "h").replace(".", "/")


def _check_variables(reader: Any, settings: dict[str, int]) -> None:
    """ContentError with every variable that is missing, unknown, or of another shape or type."""
    dtypes, shapes = reader.get_variable_to_dtype_map(), reader.get_variable_to_shape_map()
    stored = {name: (dtypes[name].name, *shape) for name, shape in shapes.items()}
    wanted = {name: ("float32", *shape) for name, shape in variable_shapes(settings).items()}
    problems = [
        f"{name} is {stored.get(name)}, not {wanted.get(name)}"
        for name in sorted(stored.keys() | wanted.keys())
        if stored.get(name) != wanted.get(name)
    ]
    if problems:
        raise ContentError(f"not the GPT-2 of {settings}: {listed(problems)}")


def import_tensorflow() -> Any:
    """TensorFlow, without what it prints on the way; DownloadError says how to get it."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import tensorflow
    except ImportError as error:
        has_wheel = sys.version_info < NO_TENSORFLOW_FROM
        way = "pip install tensorflow" if has_wheel else "it needs a Python below 3.14"
        raise DownloadError(
            f"reading OpenAI's checkpoints needs tensorflow ({error}): {way}, or fine-tune the "
            "same model from a Hugging Face folder with --weights_path"
        ) from error
    return tensorflow
