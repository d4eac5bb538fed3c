"""Official GPT-2 files -> checked folder -> arrays under GPT-2's names.

The files come from OpenAI, or else from a mirror: the environment variable GPT2_MIRROR, an address
that has `<size>/<file>`. Files put into `gpt2/<size>/` by hand are as good, after the same checks.
"""

import fcntl
import importlib.util
import os
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from system.errors import ContentError, DownloadError
from system.fetch import RemoteFile, fault_of, fetch

BASE_URL = "https://openaipublic.blob.core.windows.net/gpt-2/models"
MIRROR_VARIABLE = "GPT2_MIRROR"
NO_TENSORFLOW = "reading OpenAI's checkpoints needs tensorflow ({}): pip install tensorflow"

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
    _require_tensorflow()  # before gigabytes come that only it can read
    prefix = download_gpt2(model_size, models_dir) / "model.ckpt"
    settings = dict(MODELS[model_size].settings)
    import_tensorflow()  # if that fails, the files are not to blame
    try:
        return settings, load_gpt2_params_from_tf_ckpt(prefix, settings)
    except (DownloadError, ContentError) as error:  # right in size, rotten inside
        warnings.warn(f"fetching {model_size} again: {error}", stacklevel=2)
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
    folder = Path(models_dir).absolute() / model_size
    if not again and all(fault_of(folder / name, files[name]) is None for name in files):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second process waits here, and finds the files
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
    if Path(ckpt_path).is_dir():  # where TensorFlow would follow the file `checkpoint` anywhere
        raise ContentError(
            f"a folder ({ckpt_path}): give its checkpoint's prefix, as in model.ckpt"
        )
    tf = import_tensorflow()
    params: dict[str, Any] = {"blocks": [{} for _ in range(settings["n_layer"])]}
    try:
        reader = tf.train.load_checkpoint(str(ckpt_path))
        _check_variables(reader, settings)
        for name in variable_shapes(settings):
            _place(params, name, reader.get_tensor(name))
    except tf.errors.OpError as error:
        raise DownloadError(
            f"not a whole TensorFlow checkpoint ({ckpt_path}: {error.message}): fetch it again"
        ) from error
    return params


def variable_shapes(settings: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Every variable of an official checkpoint and its shape; C channels."""
    C = settings["n_embd"]
    shapes = {
        "model/wte": (settings["n_vocab"], C),
        "model/wpe": (settings["n_ctx"], C),
        "model/ln_f/g": (C,),
        "model/ln_f/b": (C,),
    }
    linears = {
        "attn/c_attn": (C, 3 * C),
        "attn/c_proj": (C, C),
        "mlp/c_fc": (C, 4 * C),
        "mlp/c_proj": (4 * C, C),
    }
    for i in range(settings["n_layer"]):
        for name in ("ln_1", "ln_2"):
            shapes |= {f"model/h{i}/{name}/g": (C,), f"model/h{i}/{name}/b": (C,)}
        for name, (fan_in, fan_out) in linears.items():
            shapes[f"model/h{i}/{name}/w"] = (1, fan_in, fan_out)
            shapes[f"model/h{i}/{name}/b"] = (fan_out,)
    return shapes


def _check_variables(reader: Any, settings: dict[str, int]) -> None:
    """ContentError with every variable that is missing, unknown, or of another shape or type."""
    dtypes = reader.get_variable_to_dtype_map()
    shapes = reader.get_variable_to_shape_map()
    stored = {name: (dtypes[name].name, *shape) for name, shape in shapes.items()}
    expected = {name: ("float32", *shape) for name, shape in variable_shapes(settings).items()}
    problems = [f"{name} is missing" for name in sorted(expected.keys() - stored.keys())]
    problems += [f"{name} is unknown" for name in sorted(stored.keys() - expected.keys())]
    problems += [
        f"{name} is {stored[name]} instead of {expected[name]}"
        for name in sorted(expected.keys() & stored.keys())
        if stored[name] != expected[name]
    ]
    if problems:
        raise ContentError(f"not the GPT-2 of {settings}: {'; '.join(problems)}")


def _place(params: dict[str, Any], name: str, array: Any) -> None:
    """Puts a variable where the params have it: model/h3/ln_1/g -> blocks[3]["ln_1"]["g"]."""
    *folders, leaf = name.removeprefix("model/").removeprefix("ln_f/").split("/")
    node = params["blocks"][int(folders.pop(0)[1:])] if folders else params
    for folder in folders:
        node = node.setdefault(folder, {})
    node[leaf] = array[0] if leaf == "w" else array  # (1, in, out), for a convolution


def _require_tensorflow() -> None:
    if importlib.util.find_spec("tensorflow") is None:
        raise DownloadError(NO_TENSORFLOW.format("not installed"))


def import_tensorflow() -> Any:
    """TensorFlow, without what it prints on the way; DownloadError says how to get it."""
    try:
        with _silence():
            import tensorflow
    except ImportError as error:
        raise DownloadError(NO_TENSORFLOW.format(error)) from error
    return tensorflow


@contextmanager
def _silence() -> Iterator[None]:
    """Keeps what is said meanwhile off stderr, C++ included, and changes no setting for it."""
    stderr = os.dup(2)
    with open(os.devnull, "w") as null, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.dup2(null.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
