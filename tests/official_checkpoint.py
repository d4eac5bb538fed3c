"""Checkpoints in OpenAI's layout and names, written by TensorFlow itself, with random weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.random import default_rng

import gpt_download
from gpt_download import variable_name
from model import build_transformer
from weights import architecture_from, gpt2_weights


def variable_shapes(settings: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Every variable of an official checkpoint and its shape; matrices are (1, in, out)."""
    sizes = architecture_from(settings)
    with torch.device("meta"):
        model = build_transformer(settings["n_vocab"], sizes.pop("seq_len"), **sizes)
    return {
        variable_name(row): (1, *weight.shape) if row.is_transposed else tuple(weight.shape)
        for row, weight in gpt2_weights(model).items()
    }


def write_official(folder: Path, settings: dict[str, int]) -> dict[str, np.ndarray]:
    """The variables of the checkpoint that it writes into the folder, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    random = default_rng(0)
    shapes = variable_shapes(settings)
    arrays = {
        name: 0.1 * random.standard_normal(shape, np.float32) for name, shape in shapes.items()
    }
    write_variables(folder, arrays)
    (folder / "hparams.json").write_text(json.dumps(settings))
    for name in ("encoder.json", "vocab.bpe"):
        (folder / name).write_bytes(random.bytes(1000))
    return arrays


def write_variables(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes model.ckpt.* and `checkpoint` as tf.compat.v1.train.Saver does."""
    pytest.importorskip("tensorflow", reason="it has no wheel for Python 3.14")
    tf = gpt_download.import_tensorflow()
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        variables = {
            name: v1.get_variable(name, array.shape, tf.as_dtype(array.dtype))
            for name, array in arrays.items()
        }
        for name, array in arrays.items():
            variables[name].load(array, session)
        v1.train.Saver(variables).save(session, str(folder / "model.ckpt"))
