"""A model in other programs: transformers' logits, text and ids; the receipt, the card, errors."""

import contextlib
import io
import json
import os
import re
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import gguf
import pytest
import torch
from random_models import EVEN, NUM_TOKENS, ODD, random_model
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

import export
import model as model_module
import train
from exchange import gguf_file, huggingface
from exchange.pretrained import from_safetensors
from exchange.receipt import compare
from generation.generator import TextGenerator
from model import MultiHeadAttentionBlock, Transformer
from reports.history import History
from storage import checkpoint
from system.errors import ExportError
from system.files import part_path_of
from system.process import run_command
from tokenizer import END_OF_TEXT, END_OF_TEXT_ID

AWKWARD = [
    "",
    "a  b   c \n\n\n\t d  ",
    "don't DON'T we'LL they\u2019re 's's",
    "naïve e\u0301 日本語 \u00a0x\u2003y\u00ad",
    "🤖👩\u200d👩\u200d👧 \U0001f1e6 ١٢٣ Ⅷ ½ 1234567.89",
    "\x00\x01\x1f\x7f\x85\u2028\ufeff\ufffd",
    f"{END_OF_TEXT} one{END_OF_TEXT}two {END_OF_TEXT}\n",
    " SolidGoldMagikarp" + "=" * 99,
]


def save(path: Path, model: Transformer, sizes: dict[str, int]) -> Path:
    config = {**train.config, **sizes}
    checkpoint.save(path, {"config": config, "model_state_dict": model.state_dict()})
    return path


def run_export(*arguments: object) -> str:
    """What `python export.py *arguments` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        export.main(list(map(str, arguments)))
    return printed.getvalue()


@pytest.fixture(scope="module", params=[EVEN, ODD], ids=["even", "odd"])
def exported(request, tmp_path_factory) -> SimpleNamespace:
    """A random model, its file, and what is in its Hugging Face folder; do not write there."""
    folder = tmp_path_factory.mktemp("Exports, äöü 雪")
    model = random_model(request.param)
    file = save(folder / checkpoint.FINAL_NAME, model, request.param)
    run_export("--to", "hf", folder / "hf", "--checkpoint", folder)
    return SimpleNamespace(model=model, file=file, folder=folder / "hf")


only_odd = pytest.mark.parametrize("exported", [ODD], indirect=True, ids=["odd"])


@pytest.fixture(scope="module")
def theirs(exported) -> SimpleNamespace:
    """The model and the tokenizer that transformers reads in the folder, with no network."""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", None)
        patch.setenv("HF_HUB_OFFLINE", "1")
        return SimpleNamespace(
            model=AutoModelForCausalLM.from_pretrained(exported.folder).eval(),
            tokenizer=AutoTokenizer.from_pretrained(exported.folder),
        )


@torch.no_grad()
def test_transformers_gives_our_logits(exported, theirs):
    tokens = torch.randint(NUM_TOKENS, (3, exported.model.seq_len))
    expected = theirs.model(tokens).logits
    torch.testing.assert_close(exported.model(tokens), expected, rtol=1e-5, atol=1e-5)  # float32


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, 0.1),
        ({"embedding_dropout": 0.3}, 0.3),
        ({"embedding_dropout": 0}, 0),
        ({"embedding_dropout": "auto"}, 0.1),
    ],
)
def test_each_dropout_has_its_name_in_the_published_config(own, expected):
    published = json.loads(huggingface.small_files({**EVEN, "dropout": 0.1, **own})["config.json"])
    assert (published["embd_pdrop"], published["attn_pdrop"]) == (expected, 0.1)


def test_greedy_text_in_transformers_is_ours(exported, theirs, tokenizer):
    prompt = theirs.tokenizer("One day", return_tensors="pt")
    ids = theirs.model.generate(**prompt, do_sample=False, max_new_tokens=50)[0]
    ours = TextGenerator(exported.model, tokenizer).generate("One day", 50, temperature=0.0)
    assert theirs.tokenizer.decode(ids, skip_special_tokens=True) == ours
    assert len(ids) == 2 + 50


@only_odd
def test_both_kinds_of_tokenizer_give_our_ids(exported, theirs, tokenizer):
    from tokenizers import Tokenizer

    alone = Tokenizer.from_file(str(exported.folder / "tokenizer.json"))
    for text in AWKWARD:
        ids = tokenizer.encode(text, allowed_special="all")
        assert theirs.tokenizer(text).input_ids == alone.encode(text).ids == ids, text
        assert theirs.tokenizer.decode(ids) == text
        assert alone.decode(ids, skip_special_tokens=False) == text
    assert len(theirs.tokenizer) == NUM_TOKENS
    assert theirs.tokenizer.eos_token_id == theirs.tokenizer.bos_token_id == END_OF_TEXT_ID


def test_out_and_in_again_changes_no_bit(exported):
    back = from_safetensors(exported.folder).build_model()
    assert back.blocks[0].attention.num_heads == exported.model.blocks[0].attention.num_heads
    for name, weight in exported.model.state_dict().items():
        assert torch.equal(back.state_dict()[name], weight), name


def test_a_gguf_file_has_a_receipt_in_any_thread_and_from_a_folder(tmp_path, monkeypatch):
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    save(tmp_path / checkpoint.FINAL_NAME, random_model(ODD), ODD)
    with ThreadPoolExecutor(1) as elsewhere:
        options = ("--to", "gguf", "~/x", "--checkpoint", "~")
        printed = elsewhere.submit(run_export, *options).result()
    assert re.search(r"read back by gguf .* \d\.\de-0[1-5], greedy tokens", printed)  # f16
    assert "no program more than 57 tokens" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"x", checkpoint.FINAL_NAME}


@only_odd
def test_without_transformers_gpt2_written_out_checks(exported, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    printed = run_export("--to", "hf", tmp_path / "hf", "--checkpoint", exported.file)
    assert "read back by safetensors: largest logit difference" in printed


def test_the_receipt_shows_what_differs():
    model = random_model(EVEN)
    nearly = compare(model, EVEN, "q8_0", lambda: ("it", lambda ids: model(ids) + 0.01))
    assert re.fullmatch(r"read back by it: .* 1\.0e-02, .* agree 50 of 50", nearly)
    for theirs in (lambda ids: -model(ids), lambda ids: model(ids) * torch.nan):
        with pytest.raises(ExportError, match=r"something else .*difference .* agree 0 of 50"):
            compare(model, EVEN, "q8_0", lambda theirs=theirs: ("it", theirs))


@pytest.mark.parametrize(("seq_len", "agreeing"), [(1, "0 of 0"), (2, "1 of 1"), (7, "4 of 4")])
def test_a_short_context_has_a_receipt_too(seq_len, agreeing):
    sizes = {**ODD, "seq_len": seq_len}
    model = random_model(sizes)
    config = {**sizes, "sample_prompt": "Once upon a time there was"}
    assert compare(model, config, "f32", lambda: ("it", model)).endswith(agreeing)


def test_the_card_has_the_receipt_that_is_printed_and_the_runs_numbers(trained, tmp_path):
    path = trained.folder / checkpoint.FINAL_NAME
    printed = run_export("--to", "hf", tmp_path / "stories", "--checkpoint", path)
    receipt = printed.splitlines()[1].removeprefix("receipt   ")
    assert re.fullmatch(r"read back by transformers .* agree (\d+) of \1", receipt)
    card = (tmp_path / "stories" / "README.md").read_text()
    state = checkpoint.load(path)
    latest = History.from_state_dict(state["history"]).evaluations[-1]
    for told in (
        receipt,
        f"training steps | {state['step']:,} |",
        f"step {latest.step:,}, {latest.tokens_seen:,} training tokens |",
        f"validation loss | {latest.loss:.4f} nats",
        f"perplexity | {latest.perplexity:,.2f} |",
        f"| {state['text_sha256']} |",
        f"trained with torch | {torch.__version__} |",
        '"seq_len": 16',
    ):
        assert told in card
    assert not any(f'"{key}":' in card for key in ("data", "output_dir", "resume", "weights_path"))


class ScaledAttention(MultiHeadAttentionBlock):
    """With a weight of its own."""

    def __init__(self, *sizes: Any) -> None:
        super().__init__(*sizes)
        self.query_scale = torch.nn.Parameter(torch.ones(1))


class WindowAttention(MultiHeadAttentionBlock):
    """The same weights; no position sees those from 56 before it on, past the receipt's text."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ones = torch.ones(query.size(2), query.size(2), dtype=torch.bool)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=ones.tril().triu(-55))


class WideAttention(MultiHeadAttentionBlock):
    """GPT-2's names around other shapes."""

    def __init__(self, embedding_dim: int, *sizes: Any) -> None:
        super().__init__(embedding_dim, *sizes)
        self.qkv = torch.nn.Linear(embedding_dim, 2 * embedding_dim)

    def forward(self, x: Tensor, attend: Any = None) -> Tensor:
        return self.projection(self.qkv(x)[..., : x.size(-1)])


@pytest.mark.parametrize(
    ("variant", "reason"),
    [
        (WindowAttention, "not GPT-2's formulas .*differ by"),
        (ScaledAttention, r"unknown blocks\.0\.attention\.query_scale, blocks\.1"),
        (WideAttention, "not GPT-2's formulas"),
    ],
)
@pytest.mark.parametrize("options", [("hf",), ("gguf", "--type", "q8_0")], ids="_".join)
def test_a_variant_is_not_exported(monkeypatch, tmp_path, variant, reason, options):
    monkeypatch.setattr(model_module, "MultiHeadAttentionBlock", variant)
    file = save(tmp_path / "variant.pt", random_model(EVEN), EVEN)
    with pytest.raises(ValueError, match=reason) as caught:
        run_export("--checkpoint", file, tmp_path / "new", "--to", *options)
    assert caught.value.exit_code in (2, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["variant.pt"]


def test_what_a_type_cannot_hold_is_not_exported(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_file, "add_tokenizer", lambda writer: None)  # slow to read back
    model = random_model(EVEN)
    with torch.no_grad():
        model.blocks[1].feed_forward.contract.weight[0, 0] = 1e5  # beyond float16
    file = save(tmp_path / "large.pt", model, EVEN)
    with pytest.raises(ExportError, match=r"read back by gguf .* difference (nan|inf)"):
        run_export("--to", "gguf", tmp_path / "new", "--checkpoint", file, "--type", "f16")
    run_export("--to", "gguf", tmp_path / "new", "--checkpoint", file, "--type", "f32")


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["--to", "hf", "full"], 2, "something already"),
        (["--to", "gguf", "small.pt"], 2, "something already"),
        (["--to", "hf", "no/where"], 6, "folder is missing"),
        (["--to", "hf", "new", "--type", "f16"], 2, "--type is for --to gguf"),
        (["--to", "gguf", "new", "--type", "q4"], 2, "invalid choice"),
        (["--to", "hf", "new"], 2, "not GPT-2's vocabulary"),
        (["--to", "gguf", "new", "--checkpoint", "gone.pt"], 4, "no checkpoint"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    tmp_path, monkeypatch, capsys, arguments, code, reason
):
    monkeypatch.chdir(tmp_path)
    save(Path("small.pt"), random_model(ODD, num_tokens=11), ODD)
    Path("full").mkdir()
    Path("full", "notes.txt").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(SystemExit) as caught:
        run_command(lambda: export.main(["--checkpoint", "small.pt", *arguments]))
    assert caught.value.code == code
    line = capsys.readouterr().err
    assert re.fullmatch(f"error: .*{reason}.*\n", line), line
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(("form", "package"), [("hf", "safetensors"), ("gguf", "gguf")])
def test_a_missing_package_is_named(monkeypatch, tmp_path, form, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExportError, match=f"pip install {package}"):
        run_export("--to", form, tmp_path / "new")


def fail(*_: Any) -> NoReturn:
    raise OSError(28, "No space left on device")


@only_odd
@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_a_failed_export_leaves_nothing_and_sweeps_what_a_killed_one_left(
    exported, monkeypatch, tmp_path, form
):
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 2**31 - 1)  # no process has it
        part_path_of(tmp_path / "new").mkdir()
        part_path_of(tmp_path / "old").write_text("half of it")
    monkeypatch.setattr(huggingface, "model_card", fail)  # the last text of a folder
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", fail)
    with pytest.raises(OSError, match="No space left"):
        run_export("--to", form, tmp_path / "new", "--checkpoint", exported.file)
    assert list(tmp_path.iterdir()) == []
