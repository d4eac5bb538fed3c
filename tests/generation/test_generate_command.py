"""`python generate.py`: every way to show a text, as a user's process where that matters."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_model import SIZES, seen

import generate
from generation.console import CHANGEABLE
from generation.row import printable
from generation.settings import SAMPLE
from storage import checkpoint

COMMAND = [sys.executable, "-W", "error", str(Path(generate.__file__))]
PLAIN = ["--precision=float32", "--seed=5", "--max-new-tokens=6"]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory, generator) -> Path:
    path = tmp_path_factory.mktemp("modèle 雪") / checkpoint.FINAL_NAME
    checkpoint.save(path, {"config": SIZES, "model_state_dict": generator.model.state_dict()})
    return path


@pytest.mark.parametrize(
    ("options", "settings", "said"),
    [
        ("--temperature=0.7 --top-k=40", {"temperature": 0.7, "top_k": 40}, "top-k 40, seed 5, 6"),
        ("--num-beams=3", {"num_beams": 3}, "(3 beams, seed 5, 6"),
        ("--stop=e --stop=a", {"stop": ["e", "a"], **SAMPLE}, "(temperature 0.8, seed 5, "),
    ],
)
def test_the_command_continues_a_prompt_and_says_how(command, generator, options, settings, said):
    code, text, notes = command("--prompt=Once upon", *options.split(), *PLAIN)
    expected = generator.generate("Once upon", 6, seed=5, **settings)
    assert (code, text) == (0, printable(expected) + "\n")
    assert said in notes
    assert re.fullmatch(r"\(.+, \d+ tokens, [\d,.]+ tokens/s\)\n", notes)


def test_a_drawn_seed_gives_the_same_text_again(command):
    _, text, notes = command("--prompt=Once", "--max-new-tokens=9")
    seed = re.search(r"seed (\d+),", notes)[1]
    assert command("--prompt=Once", "--max-new-tokens=9", f"--seed={seed}")[:2] == (0, text)


def test_several_texts_are_those_that_each_prompt_and_seed_gives_alone(
    command, generator, monkeypatch
):
    monkeypatch.setattr(generate, "ROWS_AT_ONCE", 3)
    options = ["--prompt=One", "--prompt=", "--num-samples=2", *PLAIN]
    code, text, notes = command(*options)
    wanted = [(prompt, seed) for prompt in ("One", "") for seed in (5, 6)]
    expected = [generator.generate(prompt, 6, seed=seed, **SAMPLE) for prompt, seed in wanted]
    assert (code, text) == (0, printable("\n---\n".join(expected)) + "\n")
    assert re.match(r"\(temperature 0.8, seeds 5 to 6, 18 tokens, [\d,.]+ tokens/s\)\n", notes)
    lines = [json.loads(line) for line in command(*options, "--json")[1].splitlines()]
    assert [(line["prompt"], line["seed"]) for line in lines] == wanted
    assert [line["prompt"] + line["text"] for line in lines] == expected
    assert all(line["num_tokens"] == 6 and line["tokens_per_second"] > 0 for line in lines)


@pytest.mark.parametrize("text", [" " * 1_000_001 + "end", "a" * 10**6], ids=["spaces", "letters"])
def test_a_prompt_of_a_megabyte_is_read_to_its_end_with_a_notice(
    command, generator, tmp_path, text
):
    path = tmp_path / "prompt.txt"
    path.write_text(text, encoding="utf-8")
    code, out, notes = command(f"--prompt-file={path}", *PLAIN)
    num_tokens = len(generator.tokenizer.encode(text))
    num_read = len(seen(range(num_tokens)))
    assert (code, out[: len(text)]) == (0, text)
    assert f"the prompt has {num_tokens} tokens, the model reads the last {num_read}" in notes


@pytest.mark.parametrize("options", [["--top-k=0"], ["--compare", "--top-k=5"], ["--temp=1"]])
def test_a_wrong_option_is_one_line_and_exit_2(command, options):
    code, text, line = command("--prompt=Once", *options)
    assert (code, text, line.count("\n")) == (2, "", 1)
    assert line.startswith("error: ")


def test_a_model_with_fewer_rows_than_the_tokenizer_is_one_line_and_exit_4(command, tmp_path):
    state = checkpoint.build_model(SIZES, 100).state_dict()
    checkpoint.save(tmp_path / "a.pt", {"config": SIZES, "model_state_dict": state})
    code, text, line = command("--prompt=Once", f"--checkpoint={tmp_path / 'a.pt'}")
    assert (code, text, line.count("\n")) == (4, "", 1)
    assert "too few tokens" in line


def test_control_characters_never_reach_the_terminal(command):
    code, text, notes = command("--prompt=\x1b[2J", "--max-new-tokens=0")
    assert (code, text) == (0, "\\x1b[2J\n")
    assert "notice" not in notes


@pytest.fixture
def talk(command, monkeypatch):
    """Runs the prompt loop on some lines; the result is (exit code, stdout, stderr)."""

    def run(*lines: str) -> tuple[int, str, str]:
        raw = io.BytesIO("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(raw, encoding="utf-8"))
        return command("--interactive", *PLAIN)

    return run


def test_the_prompt_loop_answers_each_line_until_the_input_ends(talk, generator):
    code, output, _ = talk("One", "雪", "//x", "\udcff")
    assert code == 0
    for number, prompt in enumerate(["One", "雪", "/x", "\ufffd"]):
        text = generator.generate(prompt, 6, seed=5 + number, **SAMPLE)
        assert f"> {printable(text)}\n" in output


def test_a_slash_changes_settings_for_what_follows(talk, generator):
    lines = ["/temperature 0", "/max-new-tokens 4", "/seed 9", "One", "/top-k 3", "/temperature 1"]
    code, output, notes = talk(*lines, "One", "/top-k off", "One")
    assert code == 0
    position = 0
    for settings in ({"temperature": 0}, {"top_k": 3, "seed": 10}, {"seed": 11}):
        text = printable(generator.generate("One", 4, **settings))
        position = output.index(f"> {text}\n", position) + 1
    assert "(greedy, seed 9, 4 tokens" in notes
    assert "(temperature 1.0, top-k 3, seed 10, 4 tokens" in notes


def test_a_wrong_change_is_one_line_and_the_talk_goes_on(talk, generator):
    wrong = {
        "/temperature -1": "temperature=-1.0 is not a number >= 0",
        "/temperature hot": "temperature='hot' is not a number >= 0",
        "/temperature off": "temperature=None is not a number >= 0",
        "/top-k": "top_k='' is not a whole number >= 1",
        "/num-beams 2": "no such setting (/num-beams)",
        "/ 5": "no such setting (/)",
    }
    code, output, notes = talk(*wrong, "One")
    errors = [line for line in notes.splitlines() if line.startswith("error: ")]
    assert code == 0
    assert all(said in line for said, line in zip(wrong.values(), errors, strict=True))
    assert printable(generator.generate("One", 6, seed=5, **SAMPLE)) in output


def test_help_shows_every_setting_with_its_present_value(talk):
    notes = talk("/top-k 7", "/help")[2]
    shown = dict(re.findall(r"^/(\S+) +(\S+) +\S.*$", notes, flags=re.MULTILINE))
    assert {name.replace("-", "_") for name in shown} >= set(CHANGEABLE)
    assert (shown["top-k"], shown["top-p"], shown["seed"]) == ("7", "off", "5")


def test_a_prompt_comes_through_a_pipe_to_a_terminal_without_emoji(model_path, generator):
    result = subprocess.run(
        [*COMMAND, f"--checkpoint={model_path}", *PLAIN],
        input="snow 雪\r\n".encode(),
        capture_output=True,
        timeout=120,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    expected = generator.generate("snow 雪", 6, seed=5, **SAMPLE)
    shown = printable(expected).encode("ascii", "backslashreplace").decode() + "\n"
    assert (result.returncode, result.stdout.decode()) == (0, shown), result.stderr


def test_options_are_parsed_before_anything_slow_is_imported(tmp_path, run_python):
    code = """
import sys, generate
try:
    generate.main(["--help"])
except SystemExit:
    print({"transformers", "matplotlib", "generation.generator"} & sys.modules.keys())
"""
    result = run_python("-c", code, folder=tmp_path)
    assert result.stdout.endswith("set()\n"), result.stderr


def read_until(stream: io.BufferedReader, wanted: bytes) -> None:
    seen, deadline = b"", time.monotonic() + 60
    while wanted not in seen:
        assert time.monotonic() < deadline
        seen += stream.read1(1000)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_ctrl_c_stops_a_text_but_not_the_program(model_path):
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, f"--checkpoint={model_path}", "--max-new-tokens=1000000", "--interactive"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        for prompt in (b"One", b"Two"):
            os.write(ours, prompt + b"\n")
            read_until(process.stdout, prompt)
            process.send_signal(signal.SIGINT)
            read_until(process.stderr, b"(stopped)")
        os.write(ours, b"\x04")
        process.communicate(timeout=30)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()
        os.close(ours)
        os.close(theirs)


def test_settings_are_compared_with_the_text_that_the_model_was_trained_on(
    trained, tmp_path, monkeypatch, command
):
    folder = shutil.copytree(trained.folder, tmp_path / "copy")
    (folder / "sampling_comparison.png").unlink()
    monkeypatch.chdir(folder)
    path = folder / checkpoint.FINAL_NAME
    options = ["--compare", "--prompt=Once upon", "--max-new-tokens=8", "--seed=1"]
    code, text, notes = command(f"--checkpoint={path}", *options)
    assert code == 0, notes
    assert "nearest to the held-out text: " in text
    assert (folder / "sampling_comparison.png").exists()
    assert "nearest to the held-out text: " in trained.stdout
    assert notes.endswith("(sampling_comparison.png, seed 1)\n")
    _, text, notes = command(f"--checkpoint={path}", *options, "--prompt=Two", "--json")
    assert notes.endswith("(sampling_comparison.png of the first prompt, seed 1)\n")
    line, _ = text.splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["human"]["log_probability"] < 0


def test_without_the_text_and_room_for_a_picture_the_comparison_says_what_it_lacks(
    command, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sampling_comparison.png").mkdir()  # root, too, cannot write a file there
    code, text, notes = command("--compare", "--prompt=One", *PLAIN)
    assert code == 0
    assert "nearest" not in text
    assert "no comparison with human text" in notes
    assert "warning: no picture of the comparison (sampling_comparison.png)" in notes
    assert notes.endswith("\n(seed 5)\n")
