"""The chunked loss against the plain formula: its value, both gradients, compact and compiled."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from corpus.vocabulary import Vocabulary
from model import Transformer, build_transformer
from system.machine import Machine
from training.loss import LOG2_E, SAFE_LOGIT, NextTokenLoss, has_safe_logits

B, T, V = 3, 7, 11
CHUNK_SIZES = [1, 4, 21, 100]  # of B * T = 21 tokens: one, a rest of one, all, more than there are
USED_IDS = np.array([2, 3, 5, 9])


def tiny_model(vocab_size: int = V) -> Transformer:
    torch.manual_seed(0)
    model = build_transformer(vocab_size, T, 16, 2, 2, 0.0, 32)
    with torch.no_grad():  # large enough that the softmax is far from uniform
        model.input_embedding.embedding.weight.mul_(30)
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(V, (2, B, T), generator=generator).unbind()


def naive_loss(model, inputs, targets):
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def gradients(model, loss):
    """Loss and all the gradients of the model, in the order of its parameters."""
    model.zero_grad()
    loss.backward()
    return [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


@pytest.mark.parametrize("vocab_size", [V, 67])  # 67 rows are split into 64 and 3
@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [(torch.float32, 1e-5), (torch.float64, 1e-12)],  # sums of 21 terms, in another order
)
def test_value_and_gradients_are_those_of_the_plain_formula(vocab_size, chunk_size, dtype, rtol):
    model = tiny_model(vocab_size).to(dtype)
    ours = gradients(model, NextTokenLoss(model, chunk_size=chunk_size)(*batch()))
    naive = gradients(model, naive_loss(model, *batch()))
    assert ours[0].dtype == dtype
    torch.testing.assert_close(ours[0], naive[0], rtol=rtol / 10, atol=0)
    torch.testing.assert_close(ours, naive, rtol=rtol, atol=rtol / 10)


@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [(torch.float64, 0), (torch.float32, 1e-5)],  # products of another library
)
def test_a_frozen_head_gets_no_gradient_and_changes_no_other(dtype, rtol):
    model = tiny_model().to(dtype)
    learning = gradients(model, NextTokenLoss(model, chunk_size=4)(*batch()))
    table = model.input_embedding.embedding.weight.requires_grad_(False)
    model.zero_grad()
    loss = NextTokenLoss(model, chunk_size=4)(*batch())
    loss.backward()
    assert table.grad is None
    found = [loss.detach(), *(p.grad for p in model.parameters() if p is not table)]
    torch.testing.assert_close(found, [learning[0], *learning[2:]], rtol=rtol, atol=rtol / 10)


@pytest.mark.parametrize("ignored", [-100, -1])
@pytest.mark.parametrize("num_tokens", [None, 17])
def test_targets_below_zero_are_left_out_as_torch_leaves_them_out(ignored, num_tokens):
    model, (inputs, targets) = tiny_model(), batch()
    targets[:, :2] = ignored
    ours = gradients(model, NextTokenLoss(model, chunk_size=4)(inputs, targets, num_tokens))
    logits = model(inputs).flatten(0, 1)
    naive = F.cross_entropy(logits, targets.flatten(), ignore_index=ignored, reduction="sum")
    naive = gradients(model, naive / (num_tokens or (targets >= 0).sum()))
    torch.testing.assert_close(ours, naive, rtol=1e-5, atol=1e-6)


def test_bf16_autocast_agrees_with_float32_to_the_precision_of_bf16():
    model = tiny_model()
    with torch.no_grad():  # the softmax of the start, where the value must not be lucky
        model.input_embedding.embedding.weight.div_(30)
    with torch.autocast("cpu", torch.bfloat16):
        loss = NextTokenLoss(model, chunk_size=4)(*batch())
    assert loss.dtype == torch.float32
    ours = gradients(model, loss)
    naive = gradients(model, naive_loss(model, *batch()))
    torch.testing.assert_close(ours[0], naive[0], rtol=0, atol=1e-3)
    for our, exact in zip(ours, naive, strict=True):
        assert (our - exact).norm() <= 2**-6 * exact.norm()  # bf16 rounds by 2^-9, several times


@pytest.mark.parametrize("scale", [1e-3, 1.0, 8.0, 64.0, 1000.0])
def test_logits_of_any_size_neither_overflow_nor_lose_the_target(scale):
    model = tiny_model()
    with torch.no_grad():
        model.input_embedding.embedding.weight.mul_(scale)
    loss = NextTokenLoss(model, chunk_size=4)(*batch())
    ours = gradients(model, loss)
    naive = gradients(model, naive_loss(model, *batch()))
    torch.testing.assert_close(ours[0], naive[0])
    for our, exact in zip(ours[1:], naive[1:], strict=True):
        assert (our - exact).norm() <= 1e-4 * exact.norm()  # float32, sums in another order


LARGEST = SAFE_LOGIT / LOG2_E  # in nats


@pytest.mark.parametrize(
    ("dtype", "length", "is_safe"),
    [
        (torch.float32, 0.99 * LARGEST, True),
        (torch.float32, 1.01 * LARGEST, False),
        (torch.bfloat16, 0.99 * LARGEST, True),
        (torch.bfloat16, 1.01 * LARGEST, False),
        (torch.float16, 14.0, False),  # 2^20 is beyond its end
    ],
)
@pytest.mark.parametrize("signs", ["all up", "all down", "one up"])
def test_logits_of_a_whole_vocabulary_up_to_the_bound_need_no_shift(dtype, length, is_safe, signs):
    """Hidden states of length 1, rows of the table along them or against them."""
    num_rows = 50_257
    model = build_transformer(num_rows, T, 2, 1, 1, 0.0, 2)
    direction = F.normalize(torch.randn(2, generator=torch.Generator().manual_seed(2)), dim=0)
    hidden = direction.expand(B, T, 2).clone().requires_grad_()
    model.hidden_states = lambda tokens, seeds: hidden
    table = model.input_embedding.embedding.weight
    with torch.no_grad():
        table.copy_(-length * direction if signs != "all up" else length * direction)
        table[0] = length * direction if signs != "all down" else -length * direction
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        ours = NextTokenLoss(model, chunk_size=4)(*batch())
    exact = [factor.detach().double().requires_grad_() for factor in (hidden, table)]
    naive = F.cross_entropy((exact[0] @ exact[1].T).flatten(0, 1), batch()[1].flatten())
    assert has_safe_logits(hidden.flatten(0, 1).to(dtype) * LOG2_E, table.to(dtype)) == is_safe
    eps = torch.finfo(dtype).eps
    assert abs(ours - naive) <= 4 * eps * length
    d_hidden, d_table = torch.autograd.grad(ours, (hidden, table))
    exact_d_hidden, exact_d_table = torch.autograd.grad(naive, exact)
    assert (d_table - exact_d_table).norm() <= 4 * eps * length * exact_d_table.norm()
    # in float32 the sum of 50,257 rows that are the same is off by 2e-5 of their length
    assert (d_hidden - exact_d_hidden).abs().max() <= max(4 * eps, 5e-5) * length


def test_micro_batches_divided_by_the_whole_count_add_up_to_the_batch():
    model = tiny_model().double()
    objective = NextTokenLoss(model)
    whole = gradients(model, objective(*batch()))
    rows = [
        gradients(model, objective(inputs[None], targets[None], B * T))
        for inputs, targets in zip(*batch(), strict=True)
    ]
    torch.testing.assert_close([sum(parts) for parts in zip(*rows, strict=True)], whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_small_part_of_a_large_batch_keeps_its_gradients(dtype):
    model = tiny_model()
    naive = gradients(model, naive_loss(model, *batch()))
    with torch.autocast("cpu", dtype):
        loss = NextTokenLoss(model, chunk_size=4)(*batch(), 2**20 * B * T)
    ours = gradients(model, loss * 2**20)
    for our, exact in zip(ours[1:], naive[1:], strict=True):
        assert (our - exact).norm() <= 2**-4 * exact.norm()  # bf16 rounds by 2^-9, many times


def test_a_process_without_rows_adds_nothing():
    model = tiny_model()
    nothing = torch.empty(0, T, dtype=torch.int64)
    parts = gradients(model, NextTokenLoss(model)(nothing, nothing, B * T))
    assert all(not part.any() for part in parts)


def test_a_second_backward_through_the_same_graph_fails_instead_of_scaling_twice():
    loss = NextTokenLoss(tiny_model())(*batch()) * 8
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace operation"):
        loss.backward()


@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
def test_the_compact_form_is_the_full_model_with_equal_unused_rows(chunk_size):
    vocabulary = Vocabulary.of(USED_IDS, V)
    compact = tiny_model(vocabulary.size).double()
    full = build_transformer(V, T, 16, 2, 2, 0.0, 32).double()
    weights = compact.state_dict()
    name = "input_embedding.embedding.weight"
    full.load_state_dict({**weights, name: vocabulary.expand(weights[name])})

    objective = NextTokenLoss(compact, num_shared=vocabulary.num_shared, chunk_size=chunk_size)
    ours = gradients(compact, objective(*(vocabulary.compact(ids) for ids in batch())))
    expected = gradients(full, naive_loss(full, *batch()))
    # parameter 0, after the loss, is the table: a shared row moves all its tokens together
    expected[1] = torch.zeros_like(ours[1]).index_add_(0, vocabulary.row_of_token, expected[1])
    assert set(batch()[1].flatten().tolist()) - set(USED_IDS)  # unused tokens are targets too
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


def test_the_compiled_loss_agrees_with_the_eager_one(monkeypatch):
    model = tiny_model()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    cpu = Machine(torch.device("cpu"), torch.float32, ("", ""))
    compiled = cpu.compiled(NextTokenLoss(copy.deepcopy(model), chunk_size=4), "on")
    results = []
    for objective in (NextTokenLoss(model, chunk_size=4), compiled):
        with torch.autocast("cpu", torch.bfloat16):
            loss = objective(*batch())
        results.append(gradients(objective.model, loss))
    torch.testing.assert_close(*results)
