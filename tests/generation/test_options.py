"""The options of generate.py: each works in its mode or is refused, and prompts from any source."""

import io
import json
from pathlib import Path

import pytest

from generation.options import ALL, OPTIONS, flag, parse_arguments, prompts_of
from generation.settings import SAMPLE
from system.errors import ConfigError, DataError, SamplingError

MODES = {"": [], **{f"--{mode}": [f"--{mode}"] for mode in ("interactive", "compare")}}
MODES["--num-beams"] = ["--num-beams=2"]
VALUES = {"model": "gpt2-small", "precision": "int8", "device": "cpu", "one_a_line": None}


def given(name: str) -> str:
    """The option with a value that is its own default where it has one, or a right one."""
    option = OPTIONS[name]
    if option.default is False:
        return flag(name)
    value = VALUES.get(name, "1" if option.default in (None, []) else option.default)
    return f"{flag(name)}={value}"


@pytest.mark.parametrize("mode", MODES)
def test_an_option_has_an_effect_or_is_named(mode):
    """Also one that is given with its default value."""
    for name in OPTIONS.keys() - {"interactive", "compare", "num_beams"}:
        arguments = [*MODES[mode], given(name)]
        if mode in OPTIONS[name].modes:
            assert parse_arguments(arguments).mode == mode
        else:
            with pytest.raises(ConfigError, match=rf"no effect .*\({flag(name)}\)"):
                parse_arguments(arguments)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("--interactive --compare", "--interactive (--compare)"),
        ("--compare --num-beams=1", "--compare (--num-beams)"),
        ("--compare --top-k=5 --stop=x", "--compare (--top-k, --stop)"),
        ("--num-beams=2 --temperature=0.8", "--num-beams (--temperature)"),
        ("--length-penalty=2", "without --num-beams above 1 (--length-penalty)"),
        ("--num-beams=1 --length-penalty=1", "--num-beams above 1 (--length-penalty)"),
        ("--temperature=0 --top-p=1 --top-k=5", "with --temperature 0 (--top-k, --top-p)"),
        ("--temperature=0.0 --typical-p=1 --min-p=1", "--temperature 0 (--min-p, --typical-p)"),
        ("--prompt-file=A.JSONL --prompt=a --one-a-line", "on a .jsonl file (--one-a-line)"),
        ("--one-a-line --prompt=a", "--prompt (--one-a-line)"),
        ("--model=gpt2-small --checkpoint=a.pt", "not allowed with argument"),
        ("--prompt=a --temp=1", "unrecognized arguments: --temp=1"),
        ("--max-new-tokens=many", "argument --max-new-tokens: invalid int value: 'many'"),
        ("--model=gpt3", "invalid choice: 'gpt3'"),
        ("--top-p=1.5 --seed=-1", "top_p=1.5 is not a number in (0, 1]; seed=-1 is not a whole"),
        ("--num-beams=0 --stop=", "num_beams=0 is not a whole number >= 1; stop="),
    ],
)
def test_options_that_do_not_go_together_or_are_wrong_are_named(arguments, named):
    with pytest.raises((ConfigError, SamplingError)) as caught:
        parse_arguments(arguments.split())
    assert named in str(caught.value)


def test_what_is_given_reaches_the_settings_and_the_rest_are_those_of_samples():
    settings = parse_arguments(["--top-k=7", "--stop=a", "--stop=b", "--seed=3"]).settings
    assert (settings.top_k, settings.stop, settings.seed) == (7, ("a", "b"), 3)
    assert {name: getattr(settings, name) for name in SAMPLE} == SAMPLE
    assert parse_arguments(["--num-beams=2"]).settings.temperature == 1.0


def test_every_mode_is_in_the_table():
    assert {mode for option in OPTIONS.values() for mode in option.modes} == ALL == MODES.keys()


@pytest.mark.parametrize("option", ["checkpoint", "prompt_file"])
def test_a_tilde_is_the_home_folder(option, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    options = parse_arguments([f"{flag(option)}=~/a b"])
    assert getattr(options, option) == tmp_path / "a b"


def read(source: str, raw: bytes, folder: Path, monkeypatch, *options: str) -> list[str]:
    """The prompts that a file of that name, or the pipe, gives."""
    if source == "pipe":
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))
        return prompts_of(parse_arguments(options))
    (folder / source).write_bytes(raw)
    return prompts_of(parse_arguments([f"--prompt-file={folder / source}", *options]))


@pytest.mark.parametrize("source", ["pipe", "prompt.txt"])
@pytest.mark.parametrize(
    ("raw", "prompt"),
    [
        (b"One\n", "One"),
        (b"One\r\nTwo\r\n\r\n", "One\nTwo\n"),
        (b"\xef\xbb\xbfOne", "One"),
        ("One 雪\r\n".encode("utf-16"), "One 雪"),
        (b"", ""),
        ("Schnee 雪 ÿ".encode() + b"\xff", "Schnee 雪 ÿ\ufffd"),
    ],
    ids=repr,
)
def test_a_file_and_a_pipe_are_read_alike(source, raw, prompt, tmp_path, monkeypatch, capsys):
    assert read(source, raw, tmp_path, monkeypatch) == [prompt]
    assert ("read as U+FFFD" in capsys.readouterr().err) == ("\ufffd" in prompt)


@pytest.mark.parametrize("source", ["option", "stream of text", ".jsonl"])
def test_what_comes_as_text_is_read_like_bytes(source, tmp_path, monkeypatch, capsys):
    text = "\ufeffThe cat\r\nsat \udcff\ud800\n"  # a byte that is no UTF-8, and half a pair
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    (tmp_path / ".jsonl").write_text(json.dumps(text.rstrip()))
    path = f"--prompt-file={tmp_path / '.jsonl'}"
    arguments = {"option": [f"--prompt={text}"], "stream of text": [], ".jsonl": [path]}[source]
    assert prompts_of(parse_arguments(arguments)) == ["The cat\nsat \ufffd\ufffd"]
    assert "read as U+FFFD" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["pipe", "prompts.txt"])
def test_each_line_is_a_prompt_when_asked(source, tmp_path, monkeypatch):
    raw = b"One\r\n\r\n  Two\n"
    assert read(source, raw, tmp_path, monkeypatch, "--one-a-line") == ["One", "  Two"]


def test_json_lines_are_prompts(tmp_path, monkeypatch):
    raw = b'"One\\n"\n\n{"prompt": "Two \\u96ea"}\n{"prompt": ""}\n'
    prompts = read("A.JSONL", raw, tmp_path, monkeypatch, "--prompt=first")
    assert prompts == ["first", "One\n", "Two 雪", ""]


@pytest.mark.parametrize("line", ["{", "5", "null", "{}", '{"prompt": 5}', "[" * 5000, '["a"]'])
def test_a_line_without_a_prompt_is_named(line, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"no prompt \(.*a.jsonl, line 2\)"):
        read("a.jsonl", f"{json.dumps('One')}\n{line}\n".encode(), tmp_path, monkeypatch)


def test_what_a_line_has_beside_its_prompt_is_named(tmp_path, monkeypatch):
    raw = b'"One"\n{"prompt": "a", "temperature": 0, "\x7f": 1}\n'
    with pytest.raises(DataError, match=r"'temperature', '\\x7f' \(.*a.jsonl, line 2\)"):
        read("a.jsonl", raw, tmp_path, monkeypatch)


def test_files_that_give_no_prompt_are_named(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"no prompts \(.*empty.jsonl\)"):
        read("empty.jsonl", b"\n", tmp_path, monkeypatch)
    with pytest.raises(DataError, match="looks like a zip archive"):
        read("a.txt", b"PK\x03\x04", tmp_path, monkeypatch)
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(ConfigError, match="cannot read the prompt ") as caught:
            prompts_of(parse_arguments([f"--prompt-file={path}"]))
        assert str(path) in str(caught.value)
        assert "disk" not in str(caught.value)


def test_a_missing_prompt_is_asked_for(monkeypatch, tmp_path):
    closed = io.StringIO()
    closed.close()
    with (tmp_path / "only for writing").open("w") as refusing:
        for stdin in (None, closed, refusing):
            monkeypatch.setattr("sys.stdin", stdin)
            with pytest.raises(ConfigError, match="give --prompt"):
                prompts_of(parse_arguments([]))
    assert prompts_of(parse_arguments(["--interactive"])) == []
