"""A model in other programs: transformers' logits, text and ids; the receipt, the card, errors."""

import contextlib
import hashlib
import io
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import export
import train
from exchange import huggingface, receipt
from generation.generator import TextGenerator
from gpt_download import SHARED_SHA256
from model import Transformer
from reports.history import History
from storage import checkpoint
from system.errors import ExportError
from tokenizer import END_OF_TEXT, END_OF_TEXT_ID
from weights import load_weights_into_gpt, read_safetensors

ROOT = Path(export.__file__).parent
EVEN = {"seq_len": 64, "embedding_dim": 64, "num_layers": 2, "num_heads": 4, "ffn_hidden_dim": 96}
ODD = {"seq_len": 57, "embedding_dim": 15, "num_layers": 3, "num_heads": 5, "ffn_hidden_dim": 7}
NUM_TOKENS = END_OF_TEXT_ID + 1
AWKWARD = [
    "",
    " ",
    "a  b   c \n\n\n\t d  ",
    "don't DON'T we'LL they\u2019re 's's",
    "naïve e\u0301 日本語 \u00a0x\u2003y\u00ad",
    "🤖👩\u200d👩\u200d👧 \U0001f1e6 ١٢٣ Ⅷ ½ 1234567.89",
    "\x00\x01\x1f\x7f\x85\u2028\ufeff\ufffd",
    f"{END_OF_TEXT} one{END_OF_TEXT}two {END_OF_TEXT}\n",
    " SolidGoldMagikarp" + "=" * 99,
]


def random_model(sizes: dict[str, int], num_tokens: int = NUM_TOKENS, seed: int = 0) -> Transformer:
    """A model with every weight, biases and norms too, drawn at random."""
    torch.manual_seed(seed)
    model = checkpoint.build_model({**sizes, "dropout": 0.1}, num_tokens).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def save(path: Path, model: Transformer, sizes: dict[str, int]) -> None:
    config = {**train.config, **sizes}
    checkpoint.save(path, {"config": config, "model_state_dict": model.state_dict()})


def run_export(*arguments: object) -> str:
    """What `python export.py *arguments` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        export.main(list(map(str, arguments)))
    return printed.getvalue()


@pytest.fixture(scope="module", params=[EVEN, ODD], ids=["even", "odd"])
def exported(request, tmp_path_factory) -> SimpleNamespace:
    """A random model, its file, and what is in its Hugging Face folder; do not write there."""
    folder = tmp_path_factory.mktemp("Exports, äöü 雪")
    model, file = random_model(request.param), folder / checkpoint.FINAL_NAME
    save(file, model, request.param)
    printed = run_export("--to", "hf", folder / "hf", "--checkpoint", file)
    return SimpleNamespace(
        model=model,
        file=file,
        folder=folder / "hf",
        printed=printed,
        theirs=AutoModelForCausalLM.from_pretrained(folder / "hf").eval(),
        their_tokenizer=AutoTokenizer.from_pretrained(folder / "hf"),
    )


# ---------------------------------------------------------------- Hugging Face


@torch.no_grad()
def test_logits_in_transformers_are_ours(exported):
    tokens = torch.randint(NUM_TOKENS, (3, exported.model.seq_len))
    difference = (exported.theirs(tokens).logits - exported.model(tokens)).abs().max()
    assert difference < 1e-4  # float32, logits of about 10


def test_greedy_text_in_transformers_is_ours(exported, tokenizer):
    prompt = exported.their_tokenizer("One day", return_tensors="pt")
    ids = exported.theirs.generate(**prompt, do_sample=False, max_new_tokens=50)[0]
    ours = TextGenerator(exported.model, tokenizer).generate("One day", 50, temperature=0.0)
    assert exported.their_tokenizer.decode(ids, skip_special_tokens=True) == ours
    assert len(ids) == 2 + 50


def test_auto_tokenizer_gives_our_ids(exported, tokenizer):
    theirs = exported.their_tokenizer
    for text in AWKWARD:
        ids = tokenizer.encode(text, allowed_special="all")
        assert theirs(text).input_ids == ids, text
        assert theirs.decode(ids) == text
    assert len(theirs) == NUM_TOKENS
    assert theirs.eos_token_id == theirs.bos_token_id == END_OF_TEXT_ID


@pytest.mark.parametrize("exported", [ODD], indirect=True, ids=["odd"])
def test_the_folder_needs_no_network(exported, run_python, tmp_path):
    script = """
import socket, sys
def refuse(*_): raise AssertionError("asked the network")
socket.socket.connect = socket.getaddrinfo = refuse
from transformers import AutoModelForCausalLM, AutoTokenizer
prompt = AutoTokenizer.from_pretrained(sys.argv[1])("One day", return_tensors="pt")
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(model.generate(**prompt, do_sample=False, max_new_tokens=9)[0].tolist())
"""
    places = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    result = run_python("-W", "error", "-c", script, exported.folder, folder=tmp_path, **places)
    assert result.returncode == 0, result.stderr
    prompt = exported.their_tokenizer("One day", return_tensors="pt")
    ids = exported.theirs.generate(**prompt, do_sample=False, max_new_tokens=9)[0]
    assert result.stdout == f"{ids.tolist()}\n"


def test_the_vocabulary_is_openais_byte_for_byte(exported):
    """The hashes are those of the files that come with the official weights."""
    for ours, theirs in {"vocab.json": "encoder.json", "merges.txt": "vocab.bpe"}.items():
        content = (exported.folder / ours).read_bytes()
        assert hashlib.sha256(content).hexdigest() == SHARED_SHA256[theirs]


def test_out_and_in_again_changes_no_bit(exported):
    settings, params = read_safetensors(exported.folder)
    sizes = checkpoint.load(exported.file)["config"]
    assert settings["n_head"] == sizes["num_heads"]
    back = random_model({key: sizes[key] for key in EVEN}, settings["n_vocab"], seed=1)
    load_weights_into_gpt(back, params)
    for name, weight in exported.model.state_dict().items():
        assert torch.equal(back.state_dict()[name], weight), name


# ---------------------------------------------------------------- the receipt and the card


def test_the_receipt_is_printed_and_in_the_card(exported):
    _, _, line = exported.printed.strip().partition("receipt   ")
    assert line.startswith("read back by transformers")
    assert line.endswith("greedy tokens that agree 50 of 50")
    assert line in (exported.folder / "README.md").read_text()


@pytest.mark.parametrize("exported", [EVEN], indirect=True, ids=["even"])
def test_a_gguf_file_has_a_receipt(exported, tmp_path):
    printed = run_export("--to", "gguf", tmp_path / "x", "--checkpoint", exported.file)
    assert re.search(r"read back by gguf .* \d\.\de-0[1-5], greedy tokens", printed)  # f16
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_without_transformers_our_own_reader_checks(exported, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    printed = run_export("--to", "hf", tmp_path / "hf", "--checkpoint", exported.file)
    assert "read back by weights.py: largest logit difference 0.0e+00" in printed


def test_the_receipt_shows_what_differs():
    model = random_model(EVEN)
    shifted = receipt.compare(model, "One day", "it", lambda ids: model(ids) + 0.5)
    assert shifted.logit_difference == pytest.approx(0.5, abs=1e-5)  # float32 logits of about 10
    assert shifted.num_agreeing == shifted.num_tokens == 50
    assert receipt.compare(model, "One day", "it", lambda ids: -model(ids)).num_agreeing == 0


@pytest.mark.parametrize("seq_len", [1, 2, 7])
def test_a_short_context_has_a_receipt_too(seq_len):
    model = random_model({**ODD, "seq_len": seq_len})
    found = receipt.compare(model, "Once upon a time there was", "it", model)
    assert found.num_agreeing == found.num_tokens == seq_len - max(1, seq_len // 2)


def test_the_card_has_the_runs_numbers(trained, tmp_path):
    path = trained.folder / checkpoint.FINAL_NAME
    run_export("--to", "hf", tmp_path / "stories", "--checkpoint", path)
    card = (tmp_path / "stories" / "README.md").read_text()
    state = checkpoint.load(path)
    latest = History.from_state_dict(state["history"]).evaluations[-1]
    assert f"training steps | {state['step']:,} |" in card
    assert f"step {latest.step:,}, {latest.tokens_seen:,} training tokens |" in card
    assert f"validation loss | {latest.loss:.4f} nats" in card
    assert f"perplexity | {latest.perplexity:,.2f} |" in card
    assert f"| {state['text_sha256']} |" in card
    assert f"trained with torch | {torch.__version__} |" in card
    assert "output_dir" not in card


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["--to", "hf", "full"], 2, "something already"),
        (["--to", "hf", "small.pt"], 2, "something already"),
        (["--to", "gguf", "full"], 2, "something already"),
        (["--to", "gguf", "small.pt"], 2, "something already"),
        (["--to", "hf", "no/where"], 6, "folder is missing"),
        (["--to", "hf", "new", "--type", "f16"], 2, "--type is for --to gguf"),
        (["--to", "onnx", "new"], 2, "invalid choice"),
        (["--to", "gguf", "new", "--type", "q4"], 2, "invalid choice"),
        (["--to", "hf", "new"], 2, "not GPT-2's vocabulary"),
        (["--to", "gguf", "new", "--checkpoint", "gone.pt"], 4, "no checkpoint"),
    ],
)
def test_what_cannot_be_exported_is_refused(tmp_path, monkeypatch, arguments, code, reason):
    monkeypatch.chdir(tmp_path)
    save(Path("small.pt"), random_model(ODD, num_tokens=11), ODD)
    Path("full").mkdir()
    Path("full", "notes.txt").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises((ValueError, OSError), match=reason) as caught:
        run_export("--checkpoint", "small.pt", *arguments)
    assert caught.value.exit_code == code
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(("form", "package"), [("hf", "safetensors"), ("gguf", "gguf")])
def test_a_missing_package_is_named(monkeypatch, tmp_path, form, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExportError, match=f"pip install {package}"):
        run_export("--to", form, tmp_path / "new")


def test_an_error_is_one_line(run_python, tmp_path):
    result = run_python(export.__file__, "--to", "hf", "out", folder=tmp_path)
    assert result.returncode == 4
    assert result.stderr.startswith("error: no checkpoint (final_trained_model.pt)")
    assert result.stderr.count("\n") == 1


def fail(*_: Any) -> NoReturn:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_a_failed_export_leaves_nothing(exported, monkeypatch, tmp_path, form):
    monkeypatch.setattr(huggingface, "model_card", fail)  # the last text of a folder
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", fail)
    with pytest.raises(OSError, match="No space left"):
        run_export("--to", form, tmp_path / "new", "--checkpoint", exported.file)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_what_a_killed_export_has_left_is_swept(exported, tmp_path, form):
    target = tmp_path / "new"
    killer = (
        "import os, signal, sys, export, gguf\n"
        "def die(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
        "export.model_card = gguf.GGUFWriter.write_tensors_to_file = die\n"
        "export.main(sys.argv[1:])"
    )
    options = ["--to", form, str(target), "--checkpoint", str(exported.file)]
    killed = subprocess.run([sys.executable, "-c", killer, *options], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not target.exists()
    assert len(list(tmp_path.iterdir())) == 1
    run_export(*options)
    assert list(tmp_path.iterdir()) == [target]
