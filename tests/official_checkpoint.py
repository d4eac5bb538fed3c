"""Checkpoints in OpenAI's layout and names, written by TensorFlow itself, with random weights."""

import json
from pathlib import Path

import numpy as np
from numpy.random import default_rng

import gpt_download


def write_official(folder: Path, settings: dict[str, int]) -> dict[str, np.ndarray]:
    """The variables of the checkpoint that it writes into the folder, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    random = default_rng(0)
    shapes = gpt_download.variable_shapes(settings)
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
