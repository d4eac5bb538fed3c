"""Adapters in peft's form: the same logits in peft and here, both ways; each fault is a line."""

import json
import shutil

import gguf
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

import export
import generate
from adapters.lora import adapt, adapter_weights, base_id, plain_weights
from exchange import adapter_files
from model import build_transformer
from storage import checkpoint
from system.errors import ConfigError, WeightsError
from system.process import run_command
from training.settings import DEFAULTS
from weights import huggingface_weights

V, T = 61, 9
SIZES = {"seq_len": T, "embedding_dim": 12, "num_layers": 3, "num_heads": 3, "ffn_hidden_dim": 20}
CONFIG = {**DEFAULTS, **SIZES, "adapter": "lora", "lora_rank": 3, "lora_alpha": 5, "dropout": 0.0}
IDS = torch.arange(2 * T).view(2, T) * 7 % V


def base(seed=0):
    torch.manual_seed(seed)
    model = build_transformer(V, T, 12, 3, 3, 0.0, 20)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape)
        elif "blocks" in name:
            parameter.data *= 10
    return model.eval()


def theirs_of(model):
    """The same model in transformers."""
    config = GPT2Config(
        vocab_size=V, n_positions=T, n_embd=12, n_layer=3, n_head=3, n_inner=20, use_cache=False
    )
    theirs = GPT2LMHeadModel(config).eval()
    theirs.transformer.load_state_dict(huggingface_weights(model))
    return theirs


def tuned(**changes):
    config = {**CONFIG, **changes}
    model = adapt(base(), config)
    torch.manual_seed(1)
    for name, weight in adapter_weights(model).items():
        weight.normal_(std=0.3) if "lora_B" in name else None
    return model, config


@pytest.fixture
def folder(tmp_path):
    """An adapter as a run writes it."""
    model, config = tuned()
    where = {"base_id": base_id(model), "run_id": "a" * 32}
    adapter_files.save(tmp_path / "adapter", adapter_weights(model), config, **where)
    return tmp_path / "adapter"


def theirs_on_disk(folder, **settings):
    """peft's adapter, its B drawn, and the logits with it."""
    model = get_peft_model(theirs_of(base()), LoraConfig(fan_in_fan_out=True, **settings))
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.eval().save_pretrained(folder)
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("layers", ["blocks", "qkv", "blocks.1, projection"])
@torch.no_grad()
def test_peft_reads_ours_and_gives_the_same_logits(tmp_path, layers):
    model, config = tuned(lora_layers=layers)
    adapter_files.save(tmp_path / "ours", adapter_weights(model), config)
    theirs = PeftModel.from_pretrained(theirs_of(base()), tmp_path / "ours").eval()
    assert sum("lora_A" in name for name, _ in theirs.named_parameters()) == (
        len(adapter_weights(model)) // 2
    )
    torch.testing.assert_close(theirs(IDS).logits, model(IDS), rtol=0, atol=1e-5)
    assert (model(IDS) - base()(IDS)).abs().max() > 0.05


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 3, "target_modules": ["c_attn"]},
        {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn", "c_proj", "c_fc"]},
        {"r": 4, "use_rslora": True, "target_modules": ["c_attn", "mlp.c_proj"]},
        {"r": 2, "target_modules": ["c_fc"], "rank_pattern": {"h.1.mlp.c_fc": 5}},
        {"r": 1, "target_modules": ["c_proj"], "layers_to_transform": [0, 2]},
        {"r": 2, "target_modules": ["c_fc"], "task_type": "CAUSAL_LM", "lora_dropout": 0.3},
    ],
)
@torch.no_grad()
def test_ours_reads_pefts_and_gives_the_same_logits(tmp_path, settings):
    expected = theirs_on_disk(tmp_path, **settings)
    model = base()
    adapter_files.merge(model, adapter_files.load(tmp_path))
    torch.testing.assert_close(model(IDS), expected, rtol=0, atol=1e-5)
    assert (base()(IDS) - expected).abs().max() > 0.05


@torch.no_grad()
def test_several_adapters_count_by_their_weights(tmp_path, folder):
    theirs_on_disk(tmp_path / "other", r=2, target_modules=["c_fc"])
    together, apart = base(), [base(), base()]
    given = [f"{folder}=0.5", f"{tmp_path / 'other'}=-2"]
    adapter_files.merge_all(together, given, run_id="")
    for model, text, weight in zip(apart, given, (0.5, -2), strict=True):
        adapter_files.merge_all(model, [text.rpartition("=")[0]], run_id="")
        for name, parameter in model.named_parameters():
            parameter.sub_(dict(base().named_parameters())[name]).mul_(weight)
    for (name, found), *changes in zip(
        together.named_parameters(), *(model.parameters() for model in apart), strict=True
    ):
        expected = dict(base().named_parameters())[name] + sum(changes)
        torch.testing.assert_close(found, expected)


def test_a_folder_whose_name_ends_as_a_weight_does_is_a_folder(folder):
    odd = shutil.copytree(folder, folder.parent / "run=3")
    ours, expected = base(), base()
    adapter_files.merge_all(ours, [str(odd)], run_id="")
    adapter_files.merge_all(expected, [str(folder)], run_id="")
    torch.testing.assert_close(ours.state_dict(), expected.state_dict())


def edit(**changes):
    def change(folder):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def rename(old, new):
    def change(folder):
        path = folder / "adapter_model.safetensors"
        tensors = {name.replace(old, new): t for name, t in load_file(path).items()}
        save_file(tensors, path)

    return change


def truncate(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def spoil(folder):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 0] = torch.nan
    save_file(tensors, path)


def cut_rank(folder):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "lora_A" in name)
    save_file({**tensors, name: tensors[name][:1].clone()}, path)


FAULTS = {
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "no adapter there"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "no such file"),
    "no JSON": (write("adapter_config.json", b"{"), "not an adapter's config"),
    "a list": (write("adapter_config.json", b"[]"), "it holds a list"),
    "dora": (edit(use_dora=True), "a kind of adapter that is not read .*use_dora=True"),
    "another kind": (edit(peft_type="LOHA"), "peft_type=LOHA"),
    "biases": (edit(bias="all"), "bias=all"),
    "saved modules": (edit(modules_to_save=["wte"]), "modules_to_save="),
    "pissa": (edit(init_lora_weights="pissa"), "init=pissa"),
    "alpha a list": (edit(lora_alpha=[1]), "no number"),
    "alpha nan": (edit(lora_alpha=float("nan")), "no number"),
    "alpha true": (edit(lora_alpha=True), "no number"),
    "truncated": (truncate, "not a safetensors file"),
    "empty": (write("adapter_model.safetensors", b""), "empty"),
    "a web page": (write("adapter_model.safetensors", b"<html>"), "a web page"),
    "nan": (spoil, "not finite"),
    "no pair": (rename("lora_A", "lora_magnitude_vector"), "not the matrices of a GPT-2's adapter"),
    "the table": (rename("h.0.attn.c_attn", "wte"), "the table is input and head at once"),
    "a layer of none": (rename("c_attn", "q_proj"), "not the matrices of a GPT-2's adapter"),
    "ranks": (cut_rank, "not the matrices of a GPT-2's adapter"),
}


@pytest.mark.parametrize(("change", "said"), FAULTS.values(), ids=FAULTS)
def test_what_is_wrong_with_an_adapter_is_one_line(folder, change, said):
    change(folder)
    with pytest.raises(WeightsError, match=said) as caught:
        adapter_files.load(folder)
    assert "\n" not in str(caught.value)


def test_an_adapter_of_another_model_is_refused_and_the_model_stays(folder):
    adapter = adapter_files.load(folder)
    others = [base(seed=1), build_transformer(V, T, 6, 3, 3, 0.0, 20)]
    others.append(build_transformer(V, T, 12, 2, 3, 0.0, 20))
    for model, said in zip(others, ("another model's", "other sizes", "other sizes"), strict=True):
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        with pytest.raises(WeightsError, match=said):
            adapter_files.merge(model, adapter)
        torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_an_adapter_that_is_merged_already_is_refused(folder):
    with pytest.raises(WeightsError, match="is in the model already"):
        adapter_files.merge_all(base(), [str(folder)], run_id="a" * 32)
    adapter_files.merge_all(base(), [str(folder)], run_id="b" * 32)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A checkpoint of the whole vocabulary, an adapter of it, and both merged."""
    folder = tmp_path_factory.mktemp("a run")
    config = {**CONFIG, "seq_len": 32}
    torch.manual_seed(0)
    model = checkpoint.build_model(config, 50257)
    checkpoint.save(folder / "base.pt", {"config": config, "model_state_dict": model.state_dict()})
    base = base_id(model)
    adapt(model, config)
    for name, weight in adapter_weights(model).items():
        weight.normal_(std=0.3) if "lora_B" in name else None
    adapter_files.save(folder / "adapter", adapter_weights(model), config, base_id=base)
    merged = {"config": config, "model_state_dict": plain_weights(model)}
    checkpoint.save(folder / "merged.pt", merged)
    return folder


def test_the_commands_write_and_export_what_is_tuned(run_folder, tmp_path, capsys):
    texts = {}
    for name, more in (("merged", []), ("base", ["--adapter", str(run_folder / "adapter")])):
        given = ["--checkpoint", str(run_folder / f"{name}.pt"), *more]
        generate.main([*given, "--prompt", "Once", "--max-new-tokens", "8", "--temperature", "0"])
        texts[name] = capsys.readouterr().out
        export.main(["--to", "hf", str(tmp_path / name), *given])
        assert "largest logit difference" in capsys.readouterr().out
    assert texts["merged"] == texts["base"]
    weights = [load_file(tmp_path / name / "model.safetensors") for name in texts]
    torch.testing.assert_close(*weights, rtol=0, atol=1e-6)


def test_a_wrong_adapter_ends_a_command_in_one_line(run_folder, capsys):
    base = ["--checkpoint", str(run_folder / "base.pt"), "--prompt", "a"]
    for text in ("nowhere", f"{run_folder / 'adapter'}=heavy", f"{run_folder / 'adapter'}="):
        with pytest.raises(SystemExit) as caught:
            run_command(lambda text=text: generate.main([*base, "--adapter", text]))
        assert caught.value.code == 4
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: no adapter there")


def test_a_gguf_adapter_says_what_llama_cpp_wants_to_know(tmp_path):
    """Beside the weights alpha and r: it adds alpha / r B A, which is to be ours for each layer."""
    settings = {"r": 2, "target_modules": ["c_fc", "c_attn"], "use_rslora": True}
    theirs_on_disk(tmp_path, **settings, rank_pattern={"h.1.mlp.c_fc": 5})
    arguments = ["--to", "gguf-adapter", str(tmp_path / "a.gguf"), "--adapter", str(tmp_path)]
    with pytest.raises(ConfigError, match="no --checkpoint"):
        export.main([*arguments, "--checkpoint=."])
    export.main(arguments)
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    said = {key: reader.get_field(key).contents() for key in ("general.type", "adapter.type")}
    assert said == {"general.type": "adapter", "adapter.type": "lora"}
    assert reader.get_field("general.architecture").contents() == "gpt2"
    alpha = reader.get_field("adapter.lora.alpha").contents()
    tensors = {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
    plain, model = base(), base()
    adapter_files.merge(model, adapter_files.load(tmp_path))
    for number in range(3):
        for name, ours in (("attn_qkv", "attention.qkv"), ("ffn_up", "feed_forward.expand")):
            key = f"blk.{number}.{name}.weight"
            down, up = tensors.pop(f"{key}.lora_a"), tensors.pop(f"{key}.lora_b")
            layers = [m.get_submodule(f"blocks.{number}.{ours}").weight for m in (model, plain)]
            torch.testing.assert_close(alpha / len(down) * up @ down, layers[0] - layers[1])
    assert not tensors
