"""With a separator, documents in one row are learnt from as if each had a batch of its own."""

import shutil

import pytest
import torch
from machines import plain_machine
from tiny_run import train_quickly
from torch.utils.checkpoint import checkpoint

import model as model_module
from model import ATTENTIONS, build_transformer, dropout_mask
from storage import checkpoint as storage
from tokenizer import END_OF_TEXT
from training.learner import Learner
from training.loss import DocumentsApart, NextTokenLoss
from training.settings import DEFAULTS

V, T, SEPARATOR = 11, 13, 10
ROWS = [  # documents of one token, of a separator alone, and one that fills its row
    [1, 2, 3, SEPARATOR, 4, SEPARATOR, 5, 6, 7, 8, 9, 1, 2, 3],
    [SEPARATOR, SEPARATOR, 3, 1, 4, 1, 5, 9, 2, 6, 5, SEPARATOR, 3, 5],
    [2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4, 5, 9, SEPARATOR],
    [SEPARATOR] * 14,
]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def tiny(dropout: float = 0.0, *, attention: str = "torch", device: str = "cpu"):
    torch.manual_seed(0)
    model = build_transformer(V, T, 12, 2, 3, dropout, 20)
    with torch.no_grad():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.use_attention(attention)
    return model.to(device)


def batch(device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.tensor(ROWS, device=device)
    return rows[:, :-1], rows[:, 1:]


def documents(row: list[int]) -> list[tuple[int, list[int]]]:
    """Where each document of a window starts, and its tokens up to its separator."""
    found, start = [], 0
    for i, token in enumerate(row):
        if token == SEPARATOR or i == len(row) - 1:
            found.append((start, row[start : i + 1]))
            start = i + 1
    return found


def naive_sum(model, seen: list | None = None, rows=ROWS) -> tuple[torch.Tensor, int]:
    """The summed loss of each document as a batch of its own, and how many tokens it predicts."""
    total, count = torch.zeros((), device=model.device), 0
    for b, row in enumerate(rows):
        for start, ids in documents(row):
            if len(ids) < 2:
                continue
            if seen is not None:
                seen.append((b, start))
            ids = torch.tensor(ids, device=model.device)
            logits = model(ids[None, :-1])[0]
            total = total + torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum")
            count += len(ids) - 1
    return total, count


def gradients(model, loss) -> list[torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_loss_and_gradients_are_those_of_the_documents_apart(attention, device):
    model = tiny(attention=attention, device=device)
    objective = NextTokenLoss(model, separator=SEPARATOR, chunk_size=5)
    ours = gradients(model, objective(*batch(device)))
    total, count = naive_sum(model)
    assert objective.num_predicted(*batch(device)) == count
    torch.testing.assert_close(ours, gradients(model, total / count), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_with_dropout_they_are_those_of_the_documents_under_the_same_masks(device, monkeypatch):
    """The masks of the row are noted down, and each document alone gets its part of them."""
    model = tiny(dropout=0.4, attention="written", device=device)
    seeds = torch.arange(4, device=device) * 1234567
    drawn, seen = [], []

    def noted(like, probability, seeds=None):
        drawn.append(dropout_mask(like, probability, seeds))
        return drawn[-1]

    monkeypatch.setattr(model_module, "dropout_mask", noted)
    ours = gradients(model, NextTokenLoss(model, separator=SEPARATOR)(*batch(device), seeds=seeds))
    calls = iter(())

    def cut(like, probability, seeds=None):
        mask = drawn[next(calls)]
        b, start = seen[-1]
        part = slice(start, start + like.size(-2))
        return mask[b : b + 1, ..., part, part] if like.dim() == 4 else mask[b : b + 1, part]

    class Watched(list):
        def append(self, item):
            nonlocal calls
            calls = iter(range(len(drawn)))
            super().append(item)

    seen = Watched()
    monkeypatch.setattr(model_module, "dropout_mask", cut)
    total, count = naive_sum(model, seen)
    torch.testing.assert_close(ours, gradients(model, total / count), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_other_documents_change_no_bit_of_a_document_also_with_dropout(attention, device):
    model = tiny(dropout=0.4, attention=attention, device=device)
    inputs = batch(device)[0]
    seeds = torch.arange(4, device=device)
    apart = DocumentsApart(model, inputs == SEPARATOR, seeds)
    changed = inputs.clone()
    changed[0, :3] = torch.tensor([9, 9, 8])  # the first document of the first row
    before, after = (
        model.hidden_states(tokens, apart, seeds=seeds) for tokens in (inputs, changed)
    )
    assert not torch.equal(before[0, :3], after[0, :3])
    assert torch.equal(before[0, 4:], after[0, 4:])
    assert torch.equal(before[1:], after[1:])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # the compiler's
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_compiled_they_are_the_same(attention):
    model = tiny(dropout=0.4, attention=attention)
    objective, seeds = NextTokenLoss(model, separator=SEPARATOR), torch.arange(4)
    compiled = plain_machine().compiled(objective, "on")
    assert compiled is not objective
    ours = gradients(model, compiled(*batch(), num_tokens=40, seeds=seeds))
    eager = gradients(model, objective(*batch(), num_tokens=40, seeds=seeds))
    torch.testing.assert_close(ours, eager, rtol=1e-5, atol=1e-5)


def test_positions_restart_and_a_token_sees_its_document_up_to_itself():
    is_end = torch.tensor([[False, True, False, False, True, True, False]])
    apart = DocumentsApart(tiny(), is_end)
    assert apart.extend(7).tolist() == [[0, 1, 0, 1, 2, 0, 0]]
    numbers = [0, 0, 1, 1, 1, 2, 3]
    expected = [[numbers[i] == numbers[j] and j <= i for j in range(7)] for i in range(7)]
    assert apart.mask.tolist() == [[expected]]


def test_without_a_separator_in_the_row_nothing_changes():
    model = tiny()
    inputs, targets = (ids.clamp(max=9) for ids in batch())
    plain = gradients(model, NextTokenLoss(model)(inputs, targets))
    apart = gradients(model, NextTokenLoss(model, separator=SEPARATOR)(inputs, targets))
    torch.testing.assert_close(apart, plain, rtol=1e-5, atol=1e-6)


def test_micro_batches_add_up_and_recomputation_changes_nothing():
    model = tiny(dropout=0.3)
    objective = NextTokenLoss(model, separator=SEPARATOR)
    inputs, targets = batch()
    seeds = torch.arange(4)
    count = objective.num_predicted(inputs, targets)
    whole = gradients(model, objective(inputs, targets, count, seeds=seeds))
    model.zero_grad()
    for rows in ([0], [1, 2], [3]):
        objective(inputs[rows], targets[rows], count, seeds=seeds[rows]).backward()
    parts = [parameter.grad.clone() for parameter in model.parameters()]
    torch.testing.assert_close(parts, whole[1:], rtol=1e-5, atol=1e-6)
    for block in model.blocks:
        block.forward = partial_checkpoint(block.forward)
    again = gradients(model, objective(inputs, targets, count, seeds=seeds))
    torch.testing.assert_close(again, whole, rtol=1e-6, atol=1e-7)


def test_a_run_with_masks_learns_alike_however_its_batch_is_divided(place):
    text = END_OF_TEXT.join(f"Once there were {i} cats on {i % 7} mats." for i in range(60))
    (place / "data.txt").write_text(text, encoding="utf-8")
    histories = {}
    for name, sizes in {
        "whole": {"batch_size": 6, "grad_accum_steps": 1},
        "divided": {"batch_size": 2, "grad_accum_steps": 3},
        "unmasked": {"batch_size": 6, "grad_accum_steps": 1, "mask_documents": False},
    }.items():
        settings = {"mask_documents": True, "num_epochs": 1, "eval_tokens": 120, **sizes}
        path = train_quickly(output_dir=name, **settings)
        histories[name] = storage.load(path)["history"]
    whole, divided, unmasked = (history["train_losses"] for history in histories.values())
    torch.testing.assert_close(whole, divided, rtol=1e-5, atol=0)
    assert not torch.allclose(whole, unmasked, rtol=1e-5)
    bits = [history["evaluations"][-1]["bits_per_byte"] for history in histories.values()]
    assert bits[0] == pytest.approx(bits[1], rel=1e-5)
    assert bits[0] != pytest.approx(bits[2], rel=1e-3)


@pytest.mark.parametrize("num_ids", [2, T + 1, 40])
def test_an_evaluation_is_the_mean_over_what_the_documents_alone_predict(num_ids):
    ids = torch.tensor(ROWS).flatten()[:num_ids]
    machine = plain_machine()
    config = {**DEFAULTS, "seq_len": T, "batch_size": 2, "compile": "off"}
    model = tiny()
    learner = Learner(model, machine, config, separator=SEPARATOR)
    total, count = 0.0, 0
    for start in range(0, num_ids - 1, T):
        window = ids[start : start + T + 1].tolist()
        part, num = naive_sum(model, rows=[window])
        total, count = total + part.item(), count + num
    assert learner.mean_loss(ids) == pytest.approx(total / count, rel=1e-5)


def test_a_text_of_separators_alone_predicts_nothing_and_fails_nothing():
    model = tiny()
    objective = NextTokenLoss(model, separator=SEPARATOR)
    rows = torch.full((2, 5), SEPARATOR)
    loss, *grads = gradients(model, objective(rows, rows))
    assert loss == 0
    assert all((grad == 0).all() for grad in grads)
    assert objective(rows[:0], rows[:0], num_tokens=1) == 0


def partial_checkpoint(forward):
    return lambda *x, **more: checkpoint(forward, *x, use_reentrant=False, **more)
