"""What a run says at its end, and when it draws a bar."""

import io
import shlex
import sys

import pytest

from reports import terminal


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stdout", "stderr", "is_watched"),
    [
        (Terminal(), Terminal(), True),
        (io.StringIO(), Terminal(), False),
        (Terminal(), io.StringIO(), False),
        (None, None, False),
    ],
)
def test_a_bar_is_drawn_where_both_streams_are_a_terminal(monkeypatch, stdout, stderr, is_watched):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "stderr", stderr)
    assert terminal.is_watched() == is_watched


def test_a_bar_is_drawn_in_a_notebook(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert terminal.is_watched()


def test_the_end_names_the_files_that_are_there_and_three_commands_to_paste(tmp_path):
    folder = tmp_path / "a run's folder"
    folder.mkdir()
    for name in ("final_trained_model.pt", "history.jsonl"):
        (folder / name).touch()
    files, commands = terminal.ending(folder, "it's").split("\nnext ")
    assert str(folder / "final_trained_model.pt") in files
    assert str(folder / "history.jsonl") in files
    assert "report.html" not in files
    generate, report, export = map(shlex.split, commands.splitlines())
    model = ["--checkpoint", str(folder / "final_trained_model.pt")]
    assert generate == ["python", "generate.py", *model, "--prompt", "it's"]
    assert report == ["python", "report.py", "--table", str(folder)]
    assert export == ["python", "export.py", *model, "--to", "gguf", "model.gguf"]
