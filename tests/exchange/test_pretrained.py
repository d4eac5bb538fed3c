"""A run that starts from published weights: its config, its start, what it leaves behind."""

import gc
import shutil
from pathlib import Path

import pytest
import torch
from official_checkpoint import write_official
from random_models import NUM_TOKENS, publish
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import generate
import gpt_download
import train
from adapters.quantized import FORMATS, Packed, quantize
from exchange.pretrained import MODEL_SIZES, Shrink, from_safetensors, official
from storage import checkpoint
from system.errors import ConfigError, WeightsError
from system.fetch import RemoteFile

SETTINGS = {"n_vocab": 50257, "n_ctx": 32, "n_embd": 12, "n_head": 3, "n_layer": 2}


@pytest.fixture(scope="module")
def huggingface_folder(tmp_path_factory):
    """A tiny GPT-2 with the real vocabulary, as transformers saves it."""
    folder = tmp_path_factory.mktemp("published")
    publish(folder, n_vocab=NUM_TOKENS, n_ctx=32)
    return folder


@pytest.fixture
def official_folder(tmp_path, monkeypatch):
    """gpt2/124M with a tiny checkpoint, and a table of models that knows its sizes."""
    folder = tmp_path / "gpt2" / "124M"
    write_official(folder, SETTINGS)
    files = {name: RemoteFile((folder / name).stat().st_size) for name in gpt_download.FILE_NAMES}
    model = gpt_download.OfficialModel(SETTINGS, files)
    monkeypatch.setitem(gpt_download.MODELS, "124M", model)
    return folder


def fine_tune(config, **changes):
    return checkpoint.load(train.train({**config, "sample_tokens": 0, **changes}))


def test_only_the_four_names_of_the_contract_are_models():
    names = ["gpt2-small (124M)", "gpt2-medium (355M)", "gpt2-large (774M)", "gpt2-xl (1558M)"]
    assert list(MODEL_SIZES) == names
    assert [official(name).settings["n_layer"] for name in names] == [12, 24, 36, 48]
    for name in ("../gpt2-small (124M)", "gpt2-small/../../x", "gpt3", ""):
        with pytest.raises(ConfigError, match="no such model"):
            official(name)


def test_fine_tuning_starts_from_the_published_weights_and_sizes_with_the_options_given(
    huggingface_folder, text_folder, tiny_config
):
    script = {**tiny_config, "sample_tokens": 0, "learning_rate": 1e-9, "num_epochs": 1}
    given = {"weights_path": str(huggingface_folder), "learning_rate": 1e-9, "num_epochs": 1}
    state = checkpoint.load(train.train(script, given))  # where they are the script's, they count
    sizes = ("seq_len", "embedding_dim", "num_layers", "num_heads", "ffn_hidden_dim")
    assert [state["config"][key] for key in sizes] == [16, 12, 2, 3, 20]
    assert (state["config"]["learning_rate"], state["config"]["num_epochs"]) == (1e-9, 1)
    published = from_safetensors(huggingface_folder).build_model(16).state_dict()
    for name, tuned in checkpoint.model_from(state).state_dict().items():
        torch.testing.assert_close(tuned, published[name], rtol=0, atol=1e-6)  # 1e-9 a step


def test_the_first_rows_of_a_resized_table_are_used(huggingface_folder, tmp_path, capsys):
    path = Path(shutil.copytree(huggingface_folder, tmp_path / "resized"))
    tensors = load_file(path / "model.safetensors")
    table = tensors["transformer.wte.weight"]
    more = {"transformer.wte.weight": torch.cat([table, torch.full((47, 12), 7.0)])}
    save_file(tensors | more, path / "model.safetensors")
    model = from_safetensors(path).build_model()
    assert torch.equal(model.input_embedding.embedding.weight, table)
    said = f"warning: {path} has 50,304 tokens: the first 50,257, GPT-2's own, are used\n"
    assert capsys.readouterr().err == said
    fewer = {"transformer.wte.weight": table[:50000].clone()}
    save_file(tensors | fewer, path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"has 50,000 of 50,257"):
        from_safetensors(path)


def test_official_weights_are_fine_tuned_by_one_switch(
    official_folder, text_folder, tiny_config, monkeypatch, capsys
):
    monkeypatch.setattr(train, "USE_PRETRAINED", True)
    state = fine_tune(tiny_config, learning_rate=3e-4, num_epochs=5)
    assert (state["config"]["learning_rate"], state["config"]["num_epochs"]) == (1e-5, 2)
    said = capsys.readouterr().out
    assert "weights   gpt2-small (124M)\n" in said
    assert "learning_rate 1e-05, as suits fine-tuning: --learning_rate sets another" in said
    losses = [evaluation["loss"] for evaluation in state["history"]["evaluations"]]
    assert losses[-1] < losses[0]


def test_fine_tuning_that_only_hurts_keeps_the_weights_it_began_with(
    huggingface_folder, text_folder, tiny_config, capsys
):
    state = fine_tune(
        tiny_config, weights_path=str(huggingface_folder), learning_rate=3.0, num_epochs=1
    )
    assert state["step"] == 0
    published = from_safetensors(huggingface_folder).build_model(16)
    for name, weight in published.state_dict().items():
        assert torch.equal(state["model_state_dict"][name], weight)
    assert "training did not help" in capsys.readouterr().out


def test_the_published_sizes_win_and_what_the_user_wrote_is_not_passed_over(
    huggingface_folder, tiny_config, capsys
):
    published = from_safetensors(huggingface_folder)
    sizes = {"embedding_dim": 12, "num_layers": 2, "num_heads": 3, "ffn_hidden_dim": 20}
    found = published.architecture({**tiny_config, "seq_len": 16}, chosen=["seq_len"])
    assert found == {"seq_len": 16, **sizes, "share_unused_tokens": False}
    assert capsys.readouterr().out == ""
    found = published.architecture({**tiny_config, "seq_len": 128}, chosen=["embedding_dim"])
    assert found["seq_len"] == 32  # the default asks for more than there is
    said = capsys.readouterr().out
    assert "seq_len 32, not 128: as" in said
    assert "embedding_dim 12, not 16: as" in said
    with pytest.raises(ConfigError, match=r"seq_len=64 is more than .*: try 32"):
        published.architecture({**tiny_config, "seq_len": 64}, chosen=["seq_len"])


def test_building_draws_nothing_and_keeps_the_tables_that_no_file_holds(
    huggingface_folder, monkeypatch
):
    def with_a_table(*sizes):  # as an attention variant may have
        model = build_model(*sizes)
        model.register_buffer("table", torch.arange(3.0).exp(), persistent=False)
        return model

    build_model, state = checkpoint.build_model, torch.get_rng_state()
    monkeypatch.setattr(checkpoint, "build_model", with_a_table)
    model = from_safetensors(huggingface_folder).build_model(7, dropout=0.3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model.table, torch.arange(3.0).exp())
    assert (model.seq_len, model.blocks[0].attention.attention_dropout.p) == (7, 0.3)


def test_a_resumed_fine_tuning_run_ends_as_the_uninterrupted_one(
    huggingface_folder, text_folder, tiny_config
):
    config = {**tiny_config, "weights_path": str(huggingface_folder), "keep_checkpoints": 9}
    whole = fine_tune(config)
    resumed = fine_tune(config, resume=f"model_checkpoint_step_{config['save_freq']}.pt")
    for name, weight in whole["model_state_dict"].items():
        assert torch.equal(weight, resumed["model_state_dict"][name]), name


def test_an_official_model_writes_untrained(official_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    generate.main(["--model=gpt2-small", "--prompt=Once upon", "--max-new-tokens=3", "--seed=1"])
    assert capsys.readouterr().out.startswith("Once upon")
    assert official("gpt2-small").build_model().seq_len == SETTINGS["n_ctx"]


def live_bytes() -> int:
    """Of all tensors that there are, each storage once."""
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, nn.Parameter)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}
    return sum(storage.nbytes() for place, storage in storages.items() if place)


def frozen_in(precision: str) -> Shrink:
    return lambda model: quantize(model.requires_grad_(False), precision)


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("kind", ["official", "huggingface"])
def test_weights_put_into_few_bits_on_the_way_are_those_put_so_afterwards(
    official_folder, huggingface_folder, monkeypatch, kind, precision
):
    monkeypatch.chdir(official_folder.parent.parent)
    is_official = kind == "official"
    published = official("gpt2-small") if is_official else from_safetensors(huggingface_folder)
    expected = published.build_model(16)
    frozen_in(precision)(expected)
    table, last = expected.input_embedding.embedding, expected.blocks[-1].feed_forward.contract
    gc.collect()
    before, peaks, pack = live_bytes(), [], Packed.pack

    def noted(own: Packed, matrix: Tensor) -> None:
        pack(own, matrix)
        if own.shape in (table.shape, last.shape) and not matrix.is_meta:
            peaks.append(live_bytes())

    monkeypatch.setattr(Packed, "pack", noted)
    model = published.build_model(16, shrink=frozen_in(precision))
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=0, atol=0)
    own = sum(tensor.nbytes for tensor in model.state_dict().values())
    largest = 4 * model.input_embedding.embedding.codes.numel()
    assert max(peaks) - before <= 1.05 * own + largest  # never a second float32 matrix
