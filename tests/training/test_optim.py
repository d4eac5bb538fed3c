"""How weights are updated: groups, the first AdamW step by hand, the table of learning rates."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from model import Transformer, build_transformer
from training.optim import (
    build_optimizer,
    clip_gradients,
    parameter_groups,
    set_learning_rate,
)
from training.processes import ALONE
from training.progress import Progress
from training.schedule import learning_rate_at, tolerance_at
from training.settings import DEFAULTS

COSINE = [1.0, 0.8681980515, 0.55, 0.2318019485, 0.1]  # 0.1 + 0.9 (1 + cos(pi i / 4)) / 2
DECAY = [1.0] * 9 + [0.55, 0.1]  # of eleven steps the last two lie in the last fifth
TABLE = {
    "constant": (["constant", 0], [1.0] * 5),
    "constant with warm-up": (["constant", 4], [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]),
    "cosine": (["cosine", 0], COSINE),
    "cosine with warm-up": (["cosine", 2], [0.5, 1.0, *COSINE]),
    "decay": (["decay", 0], DECAY),
    "decay with warm-up": (["decay", 4], [0.25, 0.5, 0.75, 1.0, *DECAY]),
    "linear": (["linear", 0], [1.0, 0.775, 0.55, 0.325, 0.1]),
    "nothing but warm-up": (["cosine", 2], [0.5, 1.0]),
    "one step": (["cosine", 0], [1.0]),
}


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(0)
    return build_transformer(11, 7, 12, 2, 3, 0.0, 20)


def test_frozen_parameters_are_in_no_group(model):
    model.positional_encoding.pe.requires_grad_(False)
    groups = parameter_groups(model, weight_decay=0.3)
    ids = {id(parameter) for group in groups for parameter in group["params"]}
    assert id(model.positional_encoding.pe) not in ids
    assert len(ids) == len(list(model.parameters())) - 1


def progress_of(num_steps: int) -> Progress:
    """That of a run of so many updates."""
    batches = SimpleNamespace(dataset=range(num_steps), batch_size=1, num_per_epoch=num_steps)
    return Progress({**DEFAULTS, "num_epochs": 1}, batches, ALONE)


@pytest.mark.parametrize(("settings", "expected"), TABLE.values(), ids=TABLE)
def test_learning_rates_are_those_of_the_table(settings, expected):
    schedule, warmup_steps = settings
    progress = progress_of(len(expected))
    rates = [
        learning_rate_at(
            step,
            progress.at(step, warmup_steps=warmup_steps),
            learning_rate=3e-4,
            warmup_steps=warmup_steps,
            lr_schedule=schedule,
            lr_min_ratio=0.1,
        )
        for step in range(len(expected))
    ]
    assert rates == pytest.approx([3e-4 * ratio for ratio in expected], rel=1e-9)  # ten digits


@pytest.mark.parametrize(
    ("schedule", "last"), [("constant", 1), ("cosine", 0), ("decay", 0), ("linear", 0)]
)
def test_the_rate_after_the_last_step_stays_where_it_ended(schedule, last):
    for step in (99, 100, 1000):
        progress = progress_of(100).at(step, warmup_steps=0)
        rate = learning_rate_at(
            step, progress, learning_rate=1.0, lr_schedule=schedule, lr_min_ratio=0.0
        )
        assert rate == pytest.approx(last)


def test_the_first_update_is_adamws_and_decays_matrices_only(model):
    rate, decay = 0.01, 0.5
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = build_optimizer(model, weight_decay=decay)
    set_learning_rate(optimizer, rate)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter).sign() * 0.1
    optimizer.step()
    for old, new in zip(before, model.parameters(), strict=True):
        kept = old * (1 - rate * decay) if old.dim() == 2 else old
        # corrected for their start at 0, the first moments give gradient / |gradient|
        torch.testing.assert_close(new.detach(), kept - rate * new.grad.sign())


@pytest.mark.parametrize("max_norm", [1e-3, 40.0, 1e3])
def test_gradients_are_clipped_as_torch_clips_them(model, max_norm):
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    expected = copy.deepcopy(model)
    for theirs, ours in zip(expected.parameters(), model.parameters(), strict=True):
        theirs.grad = ours.grad.clone()
    norm = clip_gradients(model.parameters(), max_norm)
    assert torch.equal(norm, clip_grad_norm_(expected.parameters(), max_norm))
    for theirs, ours in zip(expected.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_evaluations_may_differ_by_chance_while_the_rate_is_yet_to_fall():
    def tolerance(progress: float, schedule: str, least: float = 0.0) -> float:
        return tolerance_at(progress, lr_schedule=schedule, lr_min_ratio=least)

    assert [tolerance(p, "linear") for p in (0.0, 0.5, 1.0)] == [0.03, 0.015, 0.0]
    assert [tolerance(p, "decay") for p in (0.0, 0.8, 0.9, 1.0)] == pytest.approx(
        [0.03, 0.03, 0.015, 0.0]
    )
    assert tolerance(0.0, "linear", 0.4) == pytest.approx(0.018)
    assert tolerance(0.3, "constant") == 0.0
