"""How likely a model finds a text, token by token, is what its logits say of the window."""

import pytest
import torch
from tiny_model import V, clear_model, naive_logits

from generation.scoring import likeliest, log_probabilities


@pytest.mark.parametrize("num_tokens", [0, 1, 2, 7, 8, 20])
def test_probabilities_are_those_of_reading_each_window_anew(num_tokens):
    model = clear_model()
    ids = torch.randint(V, (num_tokens,), generator=torch.Generator().manual_seed(1)).tolist()
    found = list(likeliest(model, ids, 5))
    logs = log_probabilities(model, ids)
    assert len(found) == len(logs) == max(0, num_tokens - 1)
    for place, (share, best) in enumerate(found, 1):
        expected = naive_logits(model, ids[:place]).softmax(-1)
        tops = expected.topk(5)
        # float32, other summation order
        assert share == pytest.approx(expected[ids[place]].item(), rel=1e-4, abs=1e-6)
        assert share == pytest.approx(logs[place - 1].exp().item(), rel=1e-4, abs=1e-6)
        assert [token for _, token in best] == tops.indices.tolist()
        assert [p for p, _ in best] == pytest.approx(tops.values.tolist(), rel=1e-4, abs=1e-6)
