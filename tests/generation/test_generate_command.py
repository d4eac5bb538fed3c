"""`python generate.py`: every way to give a prompt and to show a text, as a user's process."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import generate
from generation.generator import TextGenerator
from generation.row import printable
from storage import checkpoint
from storage.checkpoint import build_model

ROOT = Path(generate.__file__).parent
SIZES = {
    "seq_len": 32,
    "embedding_dim": 12,
    "num_layers": 1,
    "num_heads": 3,
    "dropout": 0.0,
    "ffn_hidden_dim": 20,
}
PLAIN = ["--precision=float32", "--seed=5", "--max-new-tokens=6"]


@pytest.fixture(scope="module")
def generator(tokenizer) -> TextGenerator:
    torch.manual_seed(0)
    return TextGenerator(build_model(SIZES, tokenizer.encoding.n_vocab), tokenizer)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory, generator) -> Path:
    path = tmp_path_factory.mktemp("model") / checkpoint.FINAL_NAME
    checkpoint.save(path, {"config": SIZES, "model_state_dict": generator.model.state_dict()})
    return path


def test_several_prompts_and_samples_are_the_texts_that_each_gives_alone(command, generator):
    code, text, notes = command("--prompt=One", "--prompt=", "--num-samples=2", *PLAIN)
    expected = [
        generator.generate(prompt, 6, temperature=0.8, seed=seed)
        for prompt in ("One", "")
        for seed in (5, 6)
    ]
    assert (code, text) == (0, printable("\n---\n".join(expected)) + "\n")
    assert re.fullmatch(r"\(seeds 5 to 6, 24 tokens, [\d,.]+ tokens/s\)\n", notes)
    assert generator.generate(["One", ""], 6, num_samples=2, seed=5, temperature=0.8) == expected


def test_json_lines_hold_prompt_text_and_seed(command, generator):
    code, text, _ = command("--prompt=One", "--num-samples=2", "--json", *PLAIN)
    lines = [json.loads(line) for line in text.splitlines()]
    assert code == 0
    assert [line["seed"] for line in lines] == [5, 6]
    for line in lines:
        expected = generator.generate("One", 6, temperature=0.8, seed=line["seed"])
        assert line["prompt"] + line["text"] == expected
        assert line["num_tokens"] == 6
        assert line["tokens_per_second"] > 0


def test_a_prompt_file_is_a_prompt(command, tmp_path):
    (tmp_path / "prompt.txt").write_bytes("Schnee 雪 \xff".encode() + b"\xff")
    code, text, _ = command(f"--prompt-file={tmp_path / 'prompt.txt'}", *PLAIN)
    assert code == 0
    assert text.startswith("Schnee 雪 ÿ\ufffd")


@pytest.mark.parametrize(
    ("start", "count", "end"),
    [
        ("word ", 200_000, ""),
        (" ", 1_000_001, "end"),
        ("a", 10**6, ""),
        ("\U0001f600", 250_000, ""),
    ],
)
def test_a_prompt_of_a_megabyte_is_read_to_its_end_with_a_notice(
    command, generator, tmp_path, start, count, end
):
    path, text = tmp_path / "prompt.txt", start * count + end
    path.write_text(text, encoding="utf-8")
    code, _, notes = command(f"--prompt-file={path}", "--temperature=0", "--json", *PLAIN)
    num_tokens = len(generator.tokenizer.encode(text))
    assert code == 0
    assert f"the prompt has {num_tokens} tokens, the model reads the last 32" in notes


def test_a_missing_prompt_file_is_one_line(command, tmp_path):
    code, text, line = command(f"--prompt-file={tmp_path / 'none.txt'}", *PLAIN)
    assert (code, text) == (6, "")
    assert "none.txt" in line


def test_beams_give_one_text_a_prompt(command, generator):
    code, text, _ = command("--prompt=One", "--num-beams=3", *PLAIN)
    expected = generator.generate("One", 6, num_beams=3)
    assert (code, text) == (0, printable(expected) + "\n")


def test_a_stop_string_ends_the_text(command, generator):
    whole = generator.generate("One", 6, temperature=0.8, seed=5)
    stop = whole[-4:-2]
    text = command("--prompt=One", f"--stop={stop}", *PLAIN)[1]
    continuation = whole[3:]
    assert text == printable("One" + continuation[: continuation.index(stop)]) + "\n"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--num-samples=0"], "--num-samples 0 is below 1"),
        (["--num-beams=2", "--num-samples=2"], "--num-beams finds one text a prompt"),
        (["--interactive"], "--interactive asks for its prompts"),
        (["--stop="], "--stop wants some text"),
        (["--seed=-1"], "seed=-1 is not a whole number in [0, 2**63)"),
        (["--min-p=2", "--typical-p=0"], "min_p=2.0 is not a number in (0, 1]; typical_p=0.0"),
        (["--model=gpt3"], "invalid choice: 'gpt3'"),
        (["--precision=int4"], "invalid choice: 'int4'"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_2(command, options, complaint):
    code, text, line = command("--prompt=Once", *options)
    assert (code, text, line.count("\n")) == (2, "", 1)
    assert complaint in line


def run_piped(model_path: Path, text: bytes, *options: str, folder: Path = ROOT):
    command = [sys.executable, str(ROOT / "generate.py"), f"--checkpoint={model_path}", *options]
    return subprocess.run(command, input=text, capture_output=True, timeout=120, cwd=folder)


def test_a_prompt_comes_through_a_pipe(model_path, generator):
    result = run_piped(model_path, b"One\n", *PLAIN)
    expected = generator.generate("One", 6, temperature=0.8, seed=5)
    assert result.stdout.decode() == printable(expected) + "\n", result.stderr
    assert result.returncode == 0


def test_the_prompt_loop_answers_each_line_until_the_input_ends(model_path, generator):
    result = run_piped(model_path, "One\n雪\n".encode(), "--interactive", *PLAIN)
    output = result.stdout.decode()
    assert result.returncode == 0, result.stderr
    for number, prompt in enumerate(["One", "雪"]):
        text = generator.generate(prompt, 6, temperature=0.8, seed=5 + number)
        assert printable(text) in output


def test_ctrl_c_stops_a_text_but_not_the_program(model_path):
    ours, theirs = pty.openpty()
    options = ["--interactive", "--max-new-tokens=1000000", f"--checkpoint={model_path}"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "generate.py"), *options],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        os.write(ours, b"One\n")
        assert process.stdout.read(30)  # the text is being written
        process.send_signal(signal.SIGINT)
        read_until(process.stderr, b"(stopped)")
        os.write(ours, b"Two\n")
        read_until(process.stdout, b"Two")
        process.send_signal(signal.SIGINT)
        read_until(process.stderr, b"(stopped)")
        os.write(ours, b"\x04")
        process.stdout.read()
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.communicate()
        os.close(ours)
        os.close(theirs)


def read_until(stream, wanted: bytes) -> None:
    seen, deadline = b"", time.monotonic() + 60
    while wanted not in seen:
        assert time.monotonic() < deadline
        seen += stream.read1(1000) if hasattr(stream, "read1") else stream.read(1)


def test_ctrl_c_outside_the_loop_is_exit_130_without_traceback(model_path):
    process = subprocess.Popen(
        [
            sys.executable,
            str(ROOT / "generate.py"),
            "--prompt=One",
            "--max-new-tokens=1000000",
            f"--checkpoint={model_path}",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.read(30)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.startswith(b"stopped:")
    assert b"Traceback" not in errors


def test_settings_are_compared_with_the_text_that_the_model_was_trained_on(
    trained, run_python, tmp_path
):
    folder = shutil.copytree(trained.folder, tmp_path / "copy")
    (folder / "sampling_comparison.png").unlink()
    options = ["--compare", "--prompt=Once upon", "--max-new-tokens=8", "--seed=1"]
    result = run_python("-W", "error", ROOT / "generate.py", *options, folder=folder)
    assert result.returncode == 0, result.stderr
    assert "nearest to the held-out text: " in result.stdout
    assert (folder / "sampling_comparison.png").exists()
    assert "nearest to the held-out text: " in trained.stdout


def test_without_the_text_the_comparison_says_what_it_lacks(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text, _ = command("--compare", "--prompt=One", *PLAIN)
    assert code == 0
    assert "no comparison with human text" in text
    assert "nearest" not in text
