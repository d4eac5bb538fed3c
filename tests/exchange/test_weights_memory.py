"""What loading the 124M model takes, in a process of its own and in units of the weights' size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from official_checkpoint import write_official
from safetensors.torch import save_file

from gpt_download import DATA, MODELS
from model import build_transformer
from weights import architecture_from, name_rows

SETTINGS = MODELS["124M"].settings
NUM_BYTES = MODELS["124M"].files[DATA].size

LOAD = """
import json, sys
from pathlib import Path
import gpt_download, safetensors.torch, weights
from exchange.huggingface import read_safetensors
from model import build_transformer

def kilobytes(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])

path, settings = sys.argv[1], json.loads(sys.argv[2])
if path.endswith("ckpt"):
    gpt_download.import_tensorflow()
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = kilobytes("VmRSS")
if path.endswith("ckpt"):
    params = gpt_download.load_gpt2_params_from_tf_ckpt(path, settings)
else:
    settings, params = read_safetensors(path)
sizes = weights.architecture_from(settings)
model = build_transformer(settings["n_vocab"], sizes.pop("seq_len"), dropout=0.0, **sizes)
weights.load_weights_into_gpt(model, params)
print(1024 * (kilobytes("VmHWM") - before))
"""


def peak_bytes(path: Path) -> int:
    """The most that a process has above its libraries while it loads the model at `path`."""
    command = [sys.executable, "-c", LOAD, str(path), json.dumps(SETTINGS)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.slow
def test_from_tensorflow_the_peak_is_at_most_2_3_times_the_weights(tmp_path: Path) -> None:
    write_official(tmp_path, SETTINGS)
    assert peak_bytes(tmp_path / "model.ckpt") <= 2.3 * NUM_BYTES


@pytest.mark.slow
def test_from_safetensors_the_peak_is_at_most_1_3_times_the_weights(tmp_path: Path) -> None:
    sizes = architecture_from(SETTINGS)
    model = build_transformer(SETTINGS["n_vocab"], sizes.pop("seq_len"), dropout=0.0, **sizes)
    weights = model.state_dict()
    tensors = {
        row.huggingface: (weights[row.ours].T if row.is_transposed else weights[row.ours])
        for row in name_rows(SETTINGS["n_layer"])
    }
    path = tmp_path / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    assert peak_bytes(path) <= 1.3 * NUM_BYTES
