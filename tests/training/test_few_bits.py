"""Runs beside frozen matrices in few bits: resumed, merged, counted, refused."""

import pytest
import torch
from machines import plain_machine
from test_resume import stop_before
from test_tuning import LORA, WHOLE
from tiny_model import SIZES
from tiny_run import fingerprint, prepare, start_weights, train_quickly

from adapters.lora import adapt, plain_weights
from adapters.quantized import FORMATS, FrozenLinear, frozen_parts, quantize
from exchange import adapter_files
from exchange.pretrained import from_safetensors
from storage import checkpoint
from system.errors import ConfigError
from training.capacity import Learning, outline
from training.estimate import Block
from training.loss import NextTokenLoss
from training.settings import DEFAULTS

pytestmark = pytest.mark.usefixtures("place")


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize(
    "changes", [LORA, pytest.param(WHOLE, marks=pytest.mark.slow)], ids=["lora", "frozen"]
)
def test_stopped_and_resumed_it_is_the_run_that_never_stopped(
    place, monkeypatch, changes, precision
):
    changes = {**changes, "base_precision": precision}
    expected = fingerprint(train_quickly(**changes))
    prepare(place / "stopped")
    stop_before(monkeypatch, 7, **changes)
    assert fingerprint(train_quickly(resume=True, **changes)) == expected
    with pytest.raises(ConfigError, match=r"could not go on as it was .*base_precision"):
        train_quickly(resume=True, **{**changes, "num_epochs": 9, "base_precision": "float32"})


@pytest.mark.parametrize("precision", FORMATS)
def test_the_final_model_is_the_base_in_few_bits_and_what_was_learned(place, capsys, precision):
    start = str(start_weights(place / "start"))
    train_quickly(**LORA, weights_path=start, base_precision=precision)
    assert "merged    largest logit difference" in capsys.readouterr().out
    final = checkpoint.load_model("final_trained_model.pt")
    base = from_safetensors(start).build_model(final.seq_len)
    quantize(base.requires_grad_(False), precision)
    expected = from_safetensors(start).build_model(final.seq_len)
    expected.load_state_dict(plain_weights(base))
    adapter_files.merge(expected, adapter_files.load("adapter"))
    torch.testing.assert_close(dict(final.state_dict()), dict(expected.state_dict()))


def test_where_all_weights_learn_it_is_refused(place):
    with pytest.raises(ConfigError, match=r"base_precision=int8 needs matrices that do not learn"):
        train_quickly(base_precision="int8")
    with pytest.raises(ConfigError, match=r"base_precision=nf4 needs matrices"):
        train_quickly(base_precision="nf4", freeze="attention_norm")
    with pytest.raises(ConfigError, match=r"base_precision has no effect: it needs --adapter"):
        train_quickly(options={"base_precision": "int8"})


def tuned_config(**changes: object) -> dict:
    sizes = {"embedding_dim": 64, "ffn_hidden_dim": 256, "num_heads": 4, "num_layers": 2}
    return {**DEFAULTS, **sizes, "adapter": "lora", "optimizer": "adamw", "dropout": 0.0, **changes}


@pytest.mark.parametrize("precision", ["float32", *FORMATS])
def test_the_bytes_that_are_told_are_those_of_the_model(precision):
    config = tuned_config(base_precision=precision)
    model = adapt(checkpoint.build_model(config, 301), config)
    if precision != "float32":
        quantize(model, precision)
    tensors = (*model.parameters(), *model.buffers())
    told = Learning.of(config, 301)
    assert told.model_bytes == sum(tensor.nbytes for tensor in tensors)
    assert not told.has_table
    assert told.has_packed_table == (precision != "float32")


def test_the_matrices_named_are_those_of_the_model_without_adapters():
    config = tuned_config(base_precision="int8", lora_layers="blocks.1.attention")
    plain = checkpoint.build_model(config, 301).requires_grad_(False)
    quantize(plain, "int8", outline_parts := frozen_parts(plain))
    assert sum(isinstance(part, FrozenLinear) for part in plain.modules()) == 8
    assert len(outline_parts) == 9
    assert outline(config, 301).blocks[1].attention.qkv.base.precision == "int8"


def test_frozen_matrices_keep_nothing_for_the_backward_pass():
    machine = plain_machine(precision="bfloat16")
    kept = [
        Block.measured(tuned_config(base_precision=precision), machine)
        for precision in ("float32", "int8")
    ]
    assert kept[1].kept + kept[1].kept_per_window <= kept[0].kept + kept[0].kept_per_window


def test_the_loss_of_a_table_in_few_bits_is_that_of_the_table_it_stands_for():
    torch.manual_seed(0)
    few = checkpoint.build_model({**SIZES, "dropout": 0.0}, 101)
    few.input_embedding.requires_grad_(False)
    quantize(few, "nf4")
    plain = checkpoint.build_model({**SIZES, "dropout": 0.0}, 101)
    plain.load_state_dict(plain_weights(few))
    plain.input_embedding.requires_grad_(False)
    ids, results = torch.randint(101, (3, SIZES["seq_len"] + 1)), []
    for model in (few, plain):
        loss = NextTokenLoss(model, chunk_size=4)(ids[:, :-1], ids[:, 1:])
        loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results.append((loss.item(), gradients))
    torch.testing.assert_close(*results)
