"""What the tests of writing share: an untrained model of the whole vocabulary."""

import pytest
import torch
from tiny_model import SIZES

from generation.generator import TextGenerator
from storage.checkpoint import build_model
from tokenizer import GPT2Tokenizer


@pytest.fixture(scope="session")
def generator(tokenizer: GPT2Tokenizer) -> TextGenerator:
    """It likes some tokens far more than others."""
    torch.manual_seed(0)
    model = build_model(SIZES, tokenizer.encoding.n_vocab)
    torch.nn.init.normal_(model.input_embedding.embedding.weight)
    return TextGenerator(model.eval(), tokenizer)
