"""What loading the 124M model takes, in a process of its own and in units of the weights' size."""

import json

import pytest
from official_checkpoint import write_official
from random_models import random_model
from safetensors.torch import save_file

from gpt_download import DATA, MODELS
from weights import architecture_from, huggingface_weights

SETTINGS, FILES = MODELS["124M"]
LOAD = """
import json, sys
from pathlib import Path
import gpt_download, safetensors.torch
from exchange.pretrained import Pretrained, from_safetensors
from weights import nested

def kilobytes(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])

path, settings = sys.argv[1], json.loads(sys.argv[2])
is_official = path.endswith("ckpt")
if is_official:
    gpt_download.import_tensorflow()
    read = lambda: nested(gpt_download.tensors_in(Path(path), settings))
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = kilobytes("VmRSS")
(Pretrained("", settings, read) if is_official else from_safetensors(path)).build_model()
print(1024 * (kilobytes("VmHWM") - before))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "times"), [("model.ckpt", 1.5), ("model.safetensors", 1.3)])
def test_the_peak_is_little_more_than_the_weights(tmp_path, run_python, name, times):
    if name == "model.ckpt":
        write_official(tmp_path, SETTINGS)
    else:
        model = random_model(architecture_from(SETTINGS))
        save_file(huggingface_weights(model), tmp_path / name)
    result = run_python("-c", LOAD, tmp_path / name, json.dumps(SETTINGS), folder=tmp_path)
    assert int(result.stdout) <= times * FILES[DATA].size, result.stderr
