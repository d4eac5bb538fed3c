"""What people run in a notebook: the snippet, on every file we write, and explore.ipynb."""

import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from generate import TextGenerator
from storage.checkpoint import load, load_model

ROOT = Path(__file__).parent.parent
SNIPPET = """\
import torch
from model import build_transformer
from tokenizer import GPT2Tokenizer
checkpoint = torch.load('final_trained_model.pt', map_location='cpu')
config = checkpoint['config']
tokenizer = GPT2Tokenizer()
model = build_transformer(
    input_vocab_size=tokenizer.encoding.n_vocab, input_seq_len=config['seq_len'],
    embedding_dim=config['embedding_dim'], num_layers=config['num_layers'],
    num_heads=config['num_heads'], dropout=config['dropout'],
    ffn_hidden_dim=config['ffn_hidden_dim'])
model.load_state_dict(checkpoint['model_state_dict'])
model.eval()
"""


@pytest.mark.parametrize(
    "name", ["final_trained_model.pt", "best_model.pt", "model_checkpoint_step_24.pt"]
)
def test_the_notebook_snippet_runs_word_for_word(tmp_path, monkeypatch, trained, name):
    shutil.copy(trained.folder / name, tmp_path / "final_trained_model.pt")
    monkeypatch.chdir(tmp_path)
    cells = {}
    exec(SNIPPET, cells)
    ids = torch.tensor([cells["tokenizer"].encode("Once upon a time")])
    assert torch.equal(cells["model"](ids), load_model("final_trained_model.pt")(ids))
    writer = TextGenerator(cells["model"], cells["tokenizer"])
    text = writer.generate("Once upon a time", max_new_tokens=5, seed=0)
    assert text.startswith("Once upon a time")
    assert len(text) > len("Once upon a time")


def test_the_notebook_runs_beside_a_finished_run_and_shows_a_real_one(
    tmp_path, monkeypatch, trained
):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "explore.ipynb", as_version=4)
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert len([output for output in shown if "image/png" in output.get("data", {})]) == 3
    for name in ("final_trained_model.pt", "history.jsonl"):
        shutil.copy(trained.folder / name, tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, resources=place).execute()  # raises where a cell does


@pytest.fixture
def kernel(place, monkeypatch):
    """A real kernel beside a tiny text: runs a cell and gives what it prints and what it raises.

    It is interrupted, as by the button, as soon as a cell prints `stop_at`.
    """
    from jupyter_client.manager import start_new_kernel

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    manager, client = start_new_kernel(kernel_name="python3", startup_timeout=120)

    def run(code: str, *, stop_at: str = "") -> tuple[str, str]:
        said, awaited = [], [stop_at] * bool(stop_at)

        def hear(message) -> None:
            said.append(message["content"].get("text", ""))
            if awaited and awaited[0] in said[-1]:
                awaited.pop()
                manager.interrupt_kernel()

        reply = client.execute_interactive(code, output_hook=hear, timeout=120)["content"]
        return "".join(said), f"{reply['ename']}: {reply['evalue']}" if "ename" in reply else ""

    yield run
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_training_in_a_notebook_draws_a_bar_saves_when_interrupted_and_goes_on(kernel):
    kernel("from train import config, train\nfrom tiny_run import CONFIG, without_plots")
    kernel("without_plots(); tiny = {**config, **CONFIG}")
    said, error = kernel("train({**tiny, 'max_steps': 6})")
    assert error == ""
    assert "6/6" in said  # the bar at its end
    assert Path("final_trained_model.pt").exists()
    far = "{**tiny, 'output_dir': 'far', 'num_epochs': 10**6, 'eval_freq': 10**6}"
    said, error = kernel(f"train({far})", stop_at="| 10/")
    found = re.match(r"Stopped: by Ctrl-C after step (\d+), saved (\S+): python train.py", error)
    assert load(found[2])["step"] == int(found[1]) >= 10
    end = int(found[1]) + 3
    said, error = kernel(
        f"train(tiny, {{'resume': 'far', 'output_dir': 'far', 'max_steps': {end}}})"
    )
    assert (error, f"{end}/{end}" in said) == ("", True)
    apart = "{**tiny, 'max_steps': 5, 'output_dir': 'apart'}"
    kernel(f"import threading; thread = threading.Thread(target=train, args=({apart},))")
    said, error = kernel("thread.start(); thread.join()")
    assert (error, Path("apart/final_trained_model.pt").exists()) == ("", True)
