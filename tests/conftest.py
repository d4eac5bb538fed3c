"""What the tests share: a tiny text, a config that trains in a second, commands as processes."""

import gc
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, settings
from tiny_run import prepare

import generate
import train
from reports import html, plot
from system.process import run_command
from tokenizer import END_OF_TEXT, GPT2Tokenizer
from training import samples

ROOT = Path(train.__file__).parent
TINY = {
    "data": "data.txt",
    "seq_len": 16,
    "stride": 16,
    "embedding_dim": 16,
    "num_layers": 2,
    "num_heads": 2,
    "ffn_hidden_dim": 32,
    "num_epochs": 2,
    "grad_accum_steps": 1,
    "optimizer": "adamw",
    "learning_rate": 1e-2,
    "lr_schedule": "constant",
    "weight_decay": 0.1,
    "eval_freq": 8,
    "save_freq": 8,
    "keep_checkpoints": 2,
    "sample_tokens": 4,
    "device": "cpu",
    "precision": "float32",  # the same numbers on every processor
}


def pytest_configure() -> None:
    """Makes this process and those it starts the same wherever the tests run.

    One thread, for the tests run two at a time; and signals that a shell's `&` or `nohup` ignores.
    Property tests try the same examples each time, and keep no files.
    """
    settings.register_profile(
        "same",
        max_examples=100,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    settings.load_profile("same")
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that takes longest comes first: beside it one process runs many others."""
    items.sort(key=lambda item: item.path.name != "test_parallel.py")
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


def pytest_collection_finish() -> None:
    """What the imports have made stays to the end: no collection of garbage looks at it again."""
    gc.collect()
    gc.freeze()


class TrainedRun(NamedTuple):
    """What a training command left behind and printed."""

    folder: Path
    stdout: str
    stderr: str


def tiny_stories(num_stories: int = 40) -> str:
    """Some 1,700 tokens of stories, always the same, about few things."""
    choose = random.Random(0).choice
    who = ["the cat", "a small dog", "Lily", "Tom", "the old bear"]
    did = ["saw", "found", "liked", "took", "drew"]
    what = ["a red ball", "the moon", "a cake", "the big tree", "a friend"]
    stories = [
        "Once upon a time, "
        + " ".join(f"{choose(who)} {choose(did)} {choose(what)}." for _ in range(5))
        for _ in range(num_stories)
    ]
    return f"\n{END_OF_TEXT}\n".join(stories)


@pytest.fixture(scope="session")
def tokenizer() -> GPT2Tokenizer:
    return GPT2Tokenizer()


@pytest.fixture
def tiny_config() -> dict[str, Any]:
    """The defaults of train.py with a model and a run so small that they take a second."""
    return {**train.config, **TINY}


@pytest.fixture
def text_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder but for data.txt, a tiny text."""
    (tmp_path / "data.txt").write_text(tiny_stories(), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python *arguments` in a folder, as a user would: a process with its own streams."""

    def run(*arguments: object, folder: Path, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            capture_output=True,
            encoding="utf-8",
        )

    return run


@pytest.fixture(scope="session")
def tiny_options() -> list[str]:
    """The tiny config as options of train.py."""
    return [f"--{key}={value}" for key, value in TINY.items()]


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
    run_python: Callable[..., subprocess.CompletedProcess[str]],
    tiny_options: list[str],
) -> TrainedRun:
    """A finished `python train.py` on the tiny text; look at its folder, do not write there."""
    folder = tmp_path_factory.mktemp("a folder, äöü 雪")
    (folder / "data.txt").write_text(tiny_stories(), encoding="utf-8")
    result = run_python("-W", "error", ROOT / "train.py", *tiny_options, folder=folder)
    assert result.returncode == 0, result.stderr
    return TrainedRun(folder, result.stdout, result.stderr)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a tiny run's text; its pictures, most of its time, are left out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plot, "plot_history", lambda path, history, caption: None)
    monkeypatch.setattr(samples, "plot_comparison", lambda path, shown: None)
    monkeypatch.setattr(html, "write", lambda path, shown: None)
    prepare(tmp_path)
    return tmp_path


@pytest.fixture
def command(model_path: Path, capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, str, str]]:
    """Runs generate.py's `main` on the module's `model_path`, as its process would.

    The result is (exit code, stdout, stderr).
    """

    def run(*arguments: str) -> tuple[int, str, str]:
        code = 0
        try:
            run_command(lambda: generate.main([f"--checkpoint={model_path}", *arguments]))
        except SystemExit as exit_:
            code = exit_.code
        return code, *capsys.readouterr()

    return run
