"""README.md and docs/ say what is true: commands and snippets run, tables match the code."""

import gzip
import hashlib
import io
import json
import re
import runpy
import shlex
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import pytest

from system import errors
from training.settings import KEYS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
MAX_LINES = 220
TINY = [
    *("--embedding_dim=16", "--num_layers=1", "--num_heads=2", "--ffn_hidden_dim=32"),
    *("--seq_len=16", "--stride=16", "--num_epochs=1", "--sample_tokens=4"),
    "--precision=float32",
]
STORY = "Once upon a time a cat sat on a mat.\n<|endoftext|>\n"
MEANING = {"fixed": "no", "ordered": "with another text only", "free": "yes", "silent": "yes"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    lines = "\n".join(blocks("bash")).splitlines()
    return [part.strip() for line in lines for part in line.split("&&") if part.strip()]


def shown_by(script: Callable[[], object], folder: Path) -> str:
    """What the script prints in the folder, where also the project's texts are looked for."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as shown:
        patch.chdir(folder)
        patch.setattr("corpus.text.PROJECT", folder)
        patch.setattr("corpus.known.TABLE_PATH", folder / "corpora.csv")
        try:
            script()
        except SystemExit as end:
            if end.code:
                raise
    return shown.getvalue()


def run(command: list[str], folder: Path) -> str:
    """What `python ...` prints, in this process: a new one would first import torch."""
    path, *options = command[1:]
    arguments = [path, *options, *(TINY if path == "train.py" and options != ["--help"] else [])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        return shown_by(partial(runpy.run_path, str(ROOT / path), run_name="__main__"), folder)


def put_texts(folder: Path) -> None:
    """What the commands read: a text, a folder, records, a known corpus that is there already."""
    text = STORY * 30
    (folder / "data.txt").write_text(text, encoding="utf-8")
    (folder / "books").mkdir()
    (folder / "books" / "first.txt").write_text(text, encoding="utf-8")
    records = "".join(json.dumps({"text": STORY}) + "\n" for _ in range(30))
    (folder / "stories.jsonl.gz").write_bytes(gzip.compress(records.encode()))
    row = f"tinystories,data.txt,none,{len(text)},{hashlib.sha256(text.encode()).hexdigest()}"
    table = f"name,place,address,bytes,sha256\n{row}\n"
    (folder / "corpora.csv").write_text(table, encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a tiny text, and a model that README's training command trained."""
    folder = tmp_path_factory.mktemp("project")
    put_texts(folder)
    assert "next      python generate.py" in run(["python", "train.py"], folder)
    return folder


def test_readme_shows_the_two_commands_of_the_first_minute():
    assert "pip install -r requirements.txt && python train.py" in README
    assert 'python generate.py --prompt "Once upon a time"' in README
    assert len(README.splitlines()) <= MAX_LINES


PYTHON_COMMANDS = [command for command in commands() if command.startswith("python ")]


@pytest.mark.parametrize("command", PYTHON_COMMANDS[1:])  # the first is the fixture
def test_every_python_command_runs(command, folder):
    assert PYTHON_COMMANDS[0] == "python train.py"
    assert run(shlex.split(command, comments=True), folder)


def test_every_command_is_known_and_names_files_that_exist():
    for command in commands():
        assert command.startswith(("python ", "pip install ", "pytest"))
        for name in re.findall(r"-r (\S+)", command):
            assert (ROOT / name).is_file()


def test_the_notebook_snippets_run(folder):
    script = "\n".join(blocks("python"))
    assert "Once upon a time" in shown_by(lambda: exec(script, {}), folder)


def test_the_settings_shown_are_those_of_the_table():
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \| (.*?) \|$", README, flags=re.MULTILINE)
    assert len(rows) >= 12
    assert rows == [(key, repr(KEYS[key].default), KEYS[key].remark) for key, *_ in rows]


def test_the_page_of_settings_is_the_table():
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    rows = []
    for name, key in KEYS.items():
        what = f"`{name}` | `{key.default!r}` | {key.remark} | {key.rule.wants}"
        rows.append(f"| {what} | {MEANING[key.on_resume]} |")
    assert [line for line in page.splitlines() if line.startswith("| `")] == rows


def test_every_room_and_every_door_is_on_the_map():
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert set(re.findall(r"^\| `(\w+)/` \|", README, flags=re.MULTILINE)) == rooms
    for path in ROOT.glob("*.py"):
        assert f"`{path.name}`" in README


def test_every_exit_code_is_documented():
    codes = {kind.exit_code for kind in errors.UserError.__subclasses__()}
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    for code in codes:
        assert re.search(rf"(^|[ ,]){code} \w", README, re.MULTILINE), code
        assert f"| {code} | " in page, code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    links = [page.parent / name for name in re.findall(r"\]\(([^)#:]+)\)", text)]
    names = set(re.findall(r"`((?:\w+/)*\w+\.(?:py|md|txt))`", text))
    known = {path.name for path in ROOT.rglob("*.*")} | {"data.txt", "TinyStories.txt"}
    missing = [path for path in links if not path.exists()]
    missing += [
        name
        for name in names
        if not ((ROOT / name).exists() or (ROOT / "tests" / name).exists() or name in known)
    ]
    assert missing == []
