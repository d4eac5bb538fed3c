"""What people run in a notebook: the snippet, on every file we write, and explore.ipynb."""

import shutil
from pathlib import Path

import pytest
import torch

from generate import TextGenerator
from storage.checkpoint import load_model

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
