"""README.md says what is true: its commands and snippets run, its tables match the code."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import train
from training import settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TINY = [
    *("--embedding_dim=16", "--num_layers=1", "--num_heads=2", "--ffn_hidden_dim=32"),
    *("--seq_len=16", "--stride=16", "--num_epochs=1", "--sample_tokens=4"),
    "--precision=float32",
]
STORY = "Once upon a time a cat sat on a mat.\n<|endoftext|>\n"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    lines = "\n".join(blocks("bash")).splitlines()
    return [part.strip() for line in lines for part in line.split("&&") if part.strip()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The scripts beside a tiny text, and a model that README's training command trained."""
    folder = tmp_path_factory.mktemp("clone")
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    shutil.copytree(ROOT / "assets", folder / "assets")
    (folder / "data.txt").write_text(STORY * 30, encoding="utf-8")
    run(["python", "train.py"], folder)
    return folder


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess:
    is_training = command[:2] == ["python", "train.py"] and "--help" not in command
    arguments = [*command[1:], *(TINY if is_training else [])]
    result = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, f"{command}: {result.stderr}"
    return result


def shell_words(command: str) -> list[str]:
    return shlex.split(command, comments=True)


def test_readme_shows_the_two_commands_of_the_first_minute():
    assert "pip install -r requirements.txt && python train.py" in README
    assert 'python generate.py --prompt "Once upon a time"' in README


@pytest.mark.parametrize(
    "command", [text for text in commands() if text.startswith("python ")], ids=str
)
def test_every_python_command_runs(command, folder):
    (folder / "runs").mkdir(exist_ok=True)
    assert run(shell_words(command), folder).stdout


@pytest.mark.parametrize(
    "command", [text for text in commands() if text.startswith("pip ")], ids=str
)
def test_every_install_command_names_files_that_exist(command):
    for name in re.findall(r"-r (\S+)", command):
        assert (ROOT / name).is_file()


def test_no_command_is_left_unchecked():
    known = ("python ", "pip install ", "pytest", "mkdir ")
    assert [text for text in commands() if not text.startswith(known)] == []


def test_the_notebook_snippets_run_in_a_fresh_interpreter(folder):
    script = "\n".join(blocks("python"))
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], cwd=folder, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "Once upon a time" in result.stdout


def test_the_config_table_is_the_config():
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \| (.*?) \|$", README, flags=re.MULTILINE)
    remarks = dict(settings.REMARK.findall((ROOT / "train.py").read_text(encoding="utf-8")))
    assert rows == [(key, repr(value), remarks[key]) for key, value in train.config.items()]


def test_the_file_map_names_every_module():
    mapped = set(re.findall(r"^\| `(\w+\.py)` \|", README, flags=re.MULTILINE))
    assert mapped == {path.name for path in ROOT.glob("*.py")}


def test_every_linked_file_exists():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
