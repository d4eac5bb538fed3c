"""A run that starts from published weights: its config, its start, what it leaves behind."""

import json

import pytest
import torch
from official_checkpoint import write_official
from safetensors.torch import load_file

import generate
import gpt_download
import train
from exchange.pretrained import MODEL_SIZES, from_safetensors, official
from storage import checkpoint
from system.errors import ConfigError, WeightsError
from system.fetch import RemoteFile

SETTINGS = {"n_vocab": 50257, "n_ctx": 32, "n_embd": 12, "n_head": 3, "n_layer": 2}


@pytest.fixture(scope="module")
def huggingface_folder(tmp_path_factory):
    """A tiny GPT-2 with the real vocabulary, as transformers saves it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("published")
    GPT2LMHeadModel(
        GPT2Config(vocab_size=50257, n_positions=32, n_embd=12, n_layer=2, n_head=3)
    ).save_pretrained(folder)
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
    return checkpoint.load(train.train({**config, **changes}))


def test_the_four_names_are_the_contract():
    assert MODEL_SIZES == {
        "gpt2-small (124M)": "124M",
        "gpt2-medium (355M)": "355M",
        "gpt2-large (774M)": "774M",
        "gpt2-xl (1558M)": "1558M",
    }


@pytest.mark.parametrize("name", ["../gpt2-small (124M)", "gpt2-small/../../x", "gpt3", ""])
def test_only_the_known_names_are_models(name):
    with pytest.raises(ConfigError, match="no such model"):
        official(name)


def test_a_fine_tuned_file_holds_the_real_architecture(
    huggingface_folder, text_folder, tiny_config
):
    state = fine_tune(tiny_config, weights_path=str(huggingface_folder))
    config = state["config"]
    sizes = ("seq_len", "embedding_dim", "num_layers", "num_heads", "ffn_hidden_dim")
    assert [config[key] for key in sizes] == [16, 12, 2, 3, 48]
    assert checkpoint.model_from(state).seq_len == 16
    assert state["model_state_dict"][checkpoint.EMBEDDING].shape == (50257, 12)


def test_fine_tuning_starts_from_the_published_weights(
    huggingface_folder, text_folder, tiny_config
):
    state = fine_tune(tiny_config, weights_path=str(huggingface_folder), learning_rate=1e-9)
    published = from_safetensors(huggingface_folder).build_model().state_dict()
    for name, tuned in state["model_state_dict"].items():
        start = published[name][: len(tuned)]  # a shorter context keeps the first positions
        torch.testing.assert_close(tuned, start, rtol=0, atol=1e-6)  # 1e-9 a step


def test_official_weights_are_fine_tuned_by_one_switch(
    official_folder, text_folder, tiny_config, monkeypatch, capsys
):
    monkeypatch.setattr(train, "USE_PRETRAINED", True)
    state = fine_tune(tiny_config, learning_rate=3e-4, num_epochs=5)
    assert (state["config"]["learning_rate"], state["config"]["num_epochs"]) == (1e-5, 2)
    assert "gpt2-small (124M), fine-tuned with learning_rate 1e-05" in capsys.readouterr().out
    losses = [evaluation["loss"] for evaluation in state["history"]["evaluations"]]
    assert losses[-1] < losses[0]


def test_the_published_sizes_win_and_what_the_user_wrote_is_not_passed_over(
    huggingface_folder, tiny_config, capsys
):
    published = from_safetensors(huggingface_folder)
    sizes = {"embedding_dim": 12, "num_layers": 2, "num_heads": 3, "ffn_hidden_dim": 48}
    found = published.architecture({**tiny_config, "seq_len": 16}, chosen=["seq_len"])
    assert found == {"seq_len": 16, **sizes, "share_unused_tokens": False}
    assert capsys.readouterr().out == ""
    found = published.architecture({**tiny_config, "seq_len": 128}, chosen=["embedding_dim"])
    assert found["seq_len"] == 32  # the default asks for more than there is
    said = capsys.readouterr().out
    assert "seq_len 32, not 128: as" in said
    assert "embedding_dim 12, not 16: as" in said
    with pytest.raises(ConfigError, match=r"seq_len=64 .* 32 positions .*: try 32"):
        published.architecture({**tiny_config, "seq_len": 64}, chosen=["seq_len"])


def test_building_draws_no_random_number(huggingface_folder):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    model = from_safetensors(huggingface_folder).build_model(7, dropout=0.3)
    assert torch.equal(torch.get_rng_state(), before)
    assert (model.seq_len, model.blocks[0].attention.attention_dropout) == (7, 0.3)
    weights = load_file(huggingface_folder / "model.safetensors")
    assert torch.equal(model.positional_encoding.pe, weights["transformer.wpe.weight"][:7])


def test_a_resumed_fine_tuning_run_ends_as_the_uninterrupted_one(
    huggingface_folder, text_folder, tiny_config
):
    config = {**tiny_config, "weights_path": str(huggingface_folder), "keep_checkpoints": 9}
    whole = fine_tune(config)
    resumed = fine_tune(config, resume=f"model_checkpoint_step_{config['save_freq']}.pt")
    for name, weight in whole["model_state_dict"].items():
        assert torch.equal(weight, resumed["model_state_dict"][name]), name


@pytest.mark.parametrize("damage", ["missing", "empty", "another model"])
def test_weights_that_cannot_be_used_are_one_kind_of_error(
    damage, huggingface_folder, tmp_path, text_folder, tiny_config
):
    path = tmp_path / "model.safetensors"
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "another model":
        path = tmp_path / "other"
        path.mkdir()
        source = huggingface_folder / "model.safetensors"
        (path / source.name).write_bytes(source.read_bytes())
        (path / "config.json").write_text(json.dumps({"model_type": "opt", "n_head": 3}))
    with pytest.raises(WeightsError) as caught:
        train.train({**tiny_config, "weights_path": str(path)})
    assert caught.value.exit_code == 4


def test_an_official_model_writes_untrained(official_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    generate.main(["--model=gpt2-small", "--prompt=Once upon", "--max-new-tokens=3", "--seed=1"])
    assert capsys.readouterr().out.startswith("Once upon")
    assert official("gpt2-small").build_model().seq_len == SETTINGS["n_ctx"]
