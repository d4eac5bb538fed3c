"""Dropout is a function of (seed, step, row, place): fair, independent, the same in any batch."""

import math
from functools import partial

import pytest
import torch
from machines import plain_machine
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from model import ATTENTIONS, Dropout, Transformer, build_transformer, dropout_mask, hashed
from training.learner import Learner, dropout_seeds
from training.settings import DEFAULTS

B, T, V = 8, 7, 11
SPLITS = [[8], [4, 4], [1] * 8, [3, 3, 2], [5, 0, 3]]
EACH_ATTENTION = pytest.mark.parametrize("attention", ATTENTIONS)


def far_from(count: int, expected: float, probability: float) -> float:
    """By how many standard deviations a count of independent events lies off."""
    return abs(count - expected) / math.sqrt(expected * (1 - probability))


def test_numbers_are_those_of_splitmix64():
    """Against whole numbers of Python, after the generator's published code."""

    def expected(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    starts = [0, 1, -1, 2**63 - 1, -(2**63), 123456789]
    for start, number in zip(starts, hashed(torch.tensor(starts)).tolist(), strict=True):
        assert number % 2**64 == expected(start % 2**64)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_a_mask_drops_the_share_and_scales_the_rest(probability):
    num_columns = 12_503  # no multiple of four, which one random number masks
    mask = dropout_mask(torch.empty(B, num_columns), probability, dropout_seeds(0, 0, B))
    zero, scale = mask.unique().tolist()
    assert zero == 0.0
    assert scale == pytest.approx(1 / (1 - probability), rel=1e-3)  # to 2^-16
    assert far_from((mask == 0).sum().item(), probability * mask.numel(), probability) < 5


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_no_row_column_or_bit_is_dropped_more_often(probability):
    """Chi-square of the counts in rows, in columns, and in the four columns of one number."""
    is_dropped = dropout_mask(torch.empty(512, 1024), probability, dropout_seeds(1, 2, 512)) == 0
    fourths = is_dropped.view(-1, 4)
    for counts, num in ((is_dropped.sum(0), 512), (is_dropped.sum(1), 1024)):
        spread = num * probability * (1 - probability)
        chi_square = ((counts - num * probability) ** 2 / spread).sum().item()
        assert abs(chi_square - len(counts)) < 5 * math.sqrt(2 * len(counts))
    for count in fourths.sum(0).tolist():
        assert far_from(count, probability * len(fourths), probability) < 5


@pytest.mark.parametrize("distance", [1, 2, 3, 4, 64])
@pytest.mark.parametrize("between", ["columns", "rows", "places", "steps"])
def test_masks_are_independent(between, distance):
    """Of two elements that are so far apart, both are dropped as often as chance has it."""
    like = torch.empty(128, 2048)
    seeds = dropout_seeds(0, 0, 128)
    first = second = dropout_mask(like, 0.5, seeds) == 0
    if between == "columns":
        first, second = first[:, distance:], second[:, :-distance]
    elif between == "rows":
        first, second = first[distance:], second[:-distance]
    elif between == "places":
        layer = Dropout(0.5)
        layer.place = distance
        second = dropout_mask(like, 0.5, layer.seeds_here(seeds)) == 0
    else:
        second = dropout_mask(like, 0.5, dropout_seeds(0, distance, 128)) == 0
    both = (first & second).sum().item()
    assert far_from(both, 0.25 * first.numel(), 0.25) < 5


def test_seeds_are_a_function_of_seed_step_and_row():
    cases = [(0, 0), (0, 1), (1, 0), (42, 10**6), (2**31 - 1, 7)]
    first = [dropout_seeds(*case, 64) for case in cases]
    assert len(torch.stack(first).unique()) == len(cases) * 64
    for case, seeds in zip(cases, first, strict=True):
        assert torch.equal(dropout_seeds(*case, 5), seeds[:5])


@pytest.mark.parametrize("sizes", SPLITS)
@pytest.mark.parametrize("shape", [(T, 3), (2, T, T), ()])
def test_a_row_has_its_mask_in_any_batch(sizes, shape):
    like, seeds = torch.empty(B, *shape), dropout_seeds(3, 1, B)
    whole = dropout_mask(like, 0.3, seeds)
    parts = zip(like.split(sizes), seeds.split(sizes), strict=True)
    assert torch.equal(whole, torch.cat([dropout_mask(part, 0.3, own) for part, own in parts]))


def dropping_model(attention: str) -> Transformer:
    """In float64, so that only the masks can make a difference."""
    torch.manual_seed(0)
    model = build_transformer(V, T, 12, 2, 3, 0.3, 20).double()
    model.use_attention(attention)
    return model


def some_batch() -> tuple[Tensor, Tensor]:
    return tuple(torch.randint(V, (2, B, T), generator=torch.Generator().manual_seed(0)))


def gradients_of(model: Transformer) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters()]


@EACH_ATTENTION
def test_gradients_are_the_same_for_every_size_of_a_micro_batch(attention):
    model, results = dropping_model(attention), []
    for batch_size in (8, 4, 3, 1):
        config = {**DEFAULTS, "batch_size": batch_size, "seq_len": T}
        learner = Learner(model, plain_machine(), config)
        model.use_attention(attention)
        learner.accumulate_gradients(*some_batch(), dropout_seeds(0, 5, B))
        results.append(gradients_of(model))
        model.zero_grad()
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-9, atol=1e-9)  # float64


@EACH_ATTENTION
def test_recomputed_activations_have_the_same_masks(attention):
    """Though torch's generator has moved on when a block is computed again, in backward."""
    model, seeds, results = dropping_model(attention), dropout_seeds(0, 5, B), []
    recomputed = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    for is_recomputed in (False, True):
        for block in model.blocks if is_recomputed else []:
            block.forward = partial(recomputed, block.forward)
        hidden = model.hidden_states(some_batch()[0], seeds=seeds)
        torch.rand(1)
        hidden.square().sum().backward()
        results.append([hidden, *gradients_of(model)])
        model.zero_grad()
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@EACH_ATTENTION
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # the compiler's
def test_a_compiled_model_computes_activations_twice_to_the_same_gradients(attention, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    machine, results = plain_machine(), []
    for is_compiled, is_twice in (("off", False), ("off", True), ("on", True)):
        changes = {"compile": is_compiled, "checkpoint_activations": is_twice}
        config = {**DEFAULTS, "batch_size": B, "seq_len": T, **changes}
        model = dropping_model(attention)
        learner = Learner(model, machine, config)
        model.use_attention(attention)
        learner.accumulate_gradients(*some_batch(), dropout_seeds(0, 5, B))
        results.append(gradients_of(model))
    eager, twice, compiled = results
    assert all(map(torch.equal, eager, twice))
    torch.testing.assert_close(compiled, eager, rtol=1e-9, atol=1e-9)  # float64


@EACH_ATTENTION
def test_a_process_without_rows_draws_no_masks_and_adds_nothing(attention):
    model = dropping_model(attention)
    model.hidden_states(some_batch()[0][:0], seeds=dropout_seeds(0, 5, 0)).sum().backward()
    assert not any(gradient.any() for gradient in gradients_of(model))


@EACH_ATTENTION
def test_every_place_and_step_has_masks_of_its_own(attention):
    model = dropping_model(attention)
    places = [module.place for module in model.modules() if isinstance(module, Dropout)]
    assert places == list(range(1 + 3 * len(model.blocks)))
    once, again, later = (
        model.hidden_states(some_batch()[0], seeds=dropout_seeds(0, step, B)) for step in (4, 4, 5)
    )
    assert torch.equal(once, again)
    assert (once != later).double().mean() > 0.9


@EACH_ATTENTION
def test_without_seeds_torchs_own_generator_decides(attention):
    model, results = dropping_model(attention), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append((model(some_batch()[0]), model(some_batch()[0])))
    for one, other in zip(*results[:2], strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(*results[0])
    assert not torch.equal(results[0][0], results[2][0])
    assert torch.equal(model.eval()(some_batch()[0]), model(some_batch()[0]))


def test_dropout_masks_the_gradient_as_it_masked_the_value():
    torch.manual_seed(0)
    x = torch.ones(50, requires_grad=True)
    result = Dropout(0.5)(x)
    result.sum().backward()
    assert set(result.tolist()) == {0.0, 2.0}
    assert torch.equal(x.grad, result.detach())


@pytest.mark.gpu
def test_masks_are_the_same_on_a_gpu():
    like, seeds = torch.empty(B, 2, T, T), dropout_seeds(3, 1, B)
    on_gpu = dropout_mask(like.cuda(), 0.3, seeds)
    assert torch.equal(on_gpu.cpu(), dropout_mask(like, 0.3, seeds))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
@pytest.mark.parametrize("shape", [(2, T, T), (T, 4), (4, 64)])
def test_masks_are_the_same_when_compiled(shape):
    like, seeds = torch.empty(B, *shape), dropout_seeds(3, 1, B)
    compiled = torch.compile(dropout_mask)(like, 0.3, seeds)
    assert torch.equal(compiled, dropout_mask(like, 0.3, seeds))
