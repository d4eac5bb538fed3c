"""The snippet that people paste into a notebook runs word for word on every file we write."""

import shutil

import pytest

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
NEXT_CELLS = """
from storage.checkpoint import load_model
from generate import TextGenerator
ids = torch.tensor([tokenizer.encode('Once upon a time')])
with torch.no_grad():
    logits = model(ids)
    assert torch.equal(logits, load_model("final_trained_model.pt")(ids))
print(tuple(logits.shape))
print(TextGenerator(model, tokenizer).generate('Once upon a time', max_new_tokens=5, seed=0))
"""


@pytest.mark.parametrize(
    "name", ["final_trained_model.pt", "best_model.pt", "model_checkpoint_step_24.pt"]
)
def test_the_notebook_snippet_runs_word_for_word(tmp_path, trained, run_python, name):
    shutil.copy(trained.folder / name, tmp_path / "final_trained_model.pt")
    result = run_python("-W", "error", "-c", SNIPPET + NEXT_CELLS, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    shape, text = result.stdout.split("\n", maxsplit=1)
    assert shape == "(1, 4, 50257)"
    assert text.startswith("Once upon a time")
    assert len(text) > len("Once upon a time\n")
