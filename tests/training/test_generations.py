"""A model that teaches the next one: the gradient, the schedule of each, and that they go on."""

from pathlib import Path

import pytest
import torch
from test_resume import stop_before
from tiny_run import CONFIG, fingerprint, prepare, train_quickly
from torch.nn import functional as F

from model import build_transformer
from reports.history import Evaluation, History
from storage import checkpoint
from system.errors import ConfigError
from training import begin, generations, samples
from training.generations import num_generations
from training.learner import GENTLER
from training.loss import NextTokenLoss
from training.run import Run
from training.samples import measure
from training.teacher import TAUGHT, Teacher
from training.wanted import wanted

B, T, V, SHARED = 3, 7, 11, 5
TWO = {  # generations of 12 steps
    "generations": 2,
    "optimizer": "muon",
    "num_epochs": 4,
    "warmup_steps": 0,
    "patience": 0,
}


def models(dtype=torch.float32):
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = build_transformer(V, T, 16, 2, 2, 0.0, 32).to(dtype)
        with torch.no_grad():  # large enough that the softmax is far from uniform
            model.input_embedding.embedding.weight.mul_(30)
        made.append(model)
    return made


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(V - 1, (2, B, T), generator=generator).unbind()


def full_logits(model, inputs):
    """With a column for each token that shares the last row: (B, T, V - 1 + SHARED)."""
    logits = model(inputs)
    return torch.cat([logits, *[logits[..., -1:]] * (SHARED - 1)], dim=-1)


def naive(model, teacher, inputs, targets, keep=slice(None)):
    """The cross-entropy, and the gradients of that with the mixed target."""
    logits = full_logits(model, inputs).flatten(0, 1)[keep]
    text = F.cross_entropy(logits, targets.flatten()[keep])
    with torch.no_grad():
        expected = full_logits(teacher, inputs).flatten(0, 1)[keep].softmax(-1)
    taught = F.cross_entropy(logits, expected)
    mixed = (1 - TAUGHT) * text + TAUGHT * taught
    return text.detach(), torch.autograd.grad(mixed, [*model.parameters()])


@pytest.mark.parametrize("chunk_size", [4, 100])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-4), (torch.float64, 1e-11)])
def test_gradients_are_of_the_mixed_target_and_the_loss_is_of_the_text(chunk_size, dtype, rtol):
    model, teacher = models(dtype)
    objective = NextTokenLoss(model, num_shared=SHARED, chunk_size=chunk_size)
    objective.teacher = Teacher(teacher, num_shared=SHARED)
    loss, gradients = naive(model, teacher, *batch())
    ours = objective(*batch())
    torch.testing.assert_close(ours.detach(), loss, rtol=rtol, atol=0)
    found = torch.autograd.grad(ours, [*model.parameters()])
    torch.testing.assert_close(found, gradients, rtol=rtol, atol=rtol)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_bfloat16_rounds_the_same_gradients():
    model, teacher = models()
    objective = NextTokenLoss(model, num_shared=SHARED)
    objective.teacher = Teacher(teacher, num_shared=SHARED)
    _, expected = naive(model, teacher, *batch())
    with torch.autocast("cpu", torch.bfloat16):
        ours = objective(*batch())
    found = torch.autograd.grad(ours, [*model.parameters()])
    ours, exact = (torch.cat([g.flatten() for g in grads]) for grads in (found, expected))
    assert (ours - exact).norm() < 0.05 * exact.norm()


def test_targets_that_are_left_out_teach_nothing():
    model, teacher = models()
    inputs, targets = batch()
    is_left_out = torch.zeros(B, T, dtype=torch.bool)
    is_left_out[0, 2:] = is_left_out[2, 5] = True
    objective = NextTokenLoss(model, num_shared=SHARED)
    objective.teacher = Teacher(teacher, num_shared=SHARED)
    loss, expected = naive(model, teacher, inputs, targets, ~is_left_out.flatten())
    ours = objective(inputs, targets.masked_fill(is_left_out, -100))
    torch.testing.assert_close(ours.detach(), loss)
    found = torch.autograd.grad(ours, [*model.parameters()])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_documents_apart_are_apart_for_the_teacher_too():
    """Two documents in one window teach what each alone would."""
    model, teacher = models()
    window = torch.tensor([[1, 2, 0, 3, 4, 5, 0, 6]])
    apart = [window[:, :3], window[:, 3:7]]
    together = NextTokenLoss(model, num_shared=SHARED, separator=0)
    alone = NextTokenLoss(model, num_shared=SHARED)
    alone.teacher = together.teacher = Teacher(teacher, num_shared=SHARED)
    num_tokens = 2 + 3
    whole = together(window[:, :-1], window[:, 1:], num_tokens)
    parts = sum(alone(row[:, :-1], row[:, 1:], num_tokens) for row in apart)
    both = [torch.autograd.grad(loss, [*model.parameters()]) for loss in (whole, parts)]
    torch.testing.assert_close(*both, rtol=1e-4, atol=1e-5)


def run_of(**changes) -> Run:
    return begin.begin(wanted({**CONFIG, **TWO, **changes}, {}))


def advance(run: Run, step: int) -> None:
    if run.step == 0:
        run.record(measure(run)[0])
    while run.step < step:
        run.update()


def test_the_second_model_begins_anew_and_learns_from_the_first(place):
    run = run_of()
    assert run.generations.count == 2
    advance(run, 12)
    assert run.is_generation_over()
    assert run.generations.teacher_weights() == {}
    first = {name: w.clone() for name, w in run.learner.model.state_dict().items()}
    other_seed = run_of(seed=CONFIG["seed"] + 1).learner.model.state_dict()
    rates = []
    update = run.learner.update

    def seen(*batch, **given):
        if not rates:
            assert all(
                map(torch.equal, run.learner.model.state_dict().values(), other_seed.values())
            )
            assert not run.learner.optimizer.state
        rates.append(given["learning_rate"])
        return update(*batch, **given)

    run.learner.update = seen
    advance(run, 24)
    taught_by = run.generations.teacher_weights()
    assert taught_by.keys() == first.keys()
    assert all(torch.equal(taught_by[name], first[name]) for name in first)
    assert run.progress.is_over(run.step)
    before = run.history.learning_rates
    assert before[12:] == rates
    assert rates == pytest.approx(before[:12], rel=0.2)  # each has the whole schedule
    decays = {group["weight_decay"] for group in run.learner.optimizer.param_groups}
    assert decays == {0.0, GENTLER * run.config["weight_decay"]}


@pytest.mark.parametrize("step", [12, 17])
def test_stopped_and_resumed_is_the_run_that_never_stopped(place, monkeypatch, step):
    more = {**TWO, "average_weights": "ema"}
    expected = fingerprint(train_quickly(**more))
    prepare(place / "stopped")
    stop_before(monkeypatch, step, **more)
    saved = checkpoint.load(checkpoint.step_path(Path(), step))
    assert saved["generations"]["first_steps"] == ([0] if step == 12 else [0, 12])
    assert bool(saved["teacher"]) == (step > 12)
    assert fingerprint(train_quickly(resume=True, **more)) == expected


@pytest.mark.parametrize("step", [5, 17])
def test_a_checkpoint_of_an_earlier_version_goes_on(place, monkeypatch, step):
    expected = checkpoint.load(train_quickly(**TWO))["history"]["learning_rates"]
    prepare(place / "stopped")
    stop_before(monkeypatch, step, **TWO)
    path = checkpoint.step_path(Path(), step)
    state = torch.load(path, weights_only=True)
    checkpoint.save(path, {**state, "generations": state["generations"]["first_steps"]})
    train_quickly(resume=True, **TWO)
    found = checkpoint.load(checkpoint.step_path(Path(), 24))
    assert found["generations"]["first_steps"] == [0, 12]
    torch.testing.assert_close(found["history"]["learning_rates"][: len(expected)], expected)


def test_an_evaluation_ends_each_generation(place):
    path = train_quickly(**{**TWO, "num_epochs": 5, "eval_freq": 1000, "generations": 3})
    history = History.from_state_dict(checkpoint.load(path)["history"])
    assert [done.step for done in history.evaluations if done.step % 6] == [10, 20]


def test_fewer_generations_on_resume_leave_the_one_that_it_is_in(place, monkeypatch):
    stop_before(monkeypatch, 17, **TWO)
    train_quickly({"resume": True, "generations": 1}, **TWO)
    state = checkpoint.load(checkpoint.step_path(Path(), 24))
    assert state["generations"]["first_steps"] == [0, 12]
    rates = state["history"]["learning_rates"]
    assert rates[-1] < rates[17] < rates[16] < rates[12]  # it goes on falling to the end


def told(*losses: float) -> History:
    history = History()
    history.evaluations = [Evaluation(4 * n, 0, loss, 1.0) for n, loss in enumerate(losses)]
    return history


def test_evaluations_of_another_model_do_not_count():
    history = told(9.0, 3.0, 5.0, 4.0, 3.5)
    assert history.num_no_better() == 3
    assert history.num_no_better(after=4) == 0
    assert told(9.0, 3.0, 5.0, 5.5, 5.6).num_no_better(after=4) == 2
    assert told(9.0, 3.0).num_no_better(after=4) == 0


@pytest.mark.parametrize(("patience", "num_evaluations"), [(2, 4), (3, 5), (0, 7)])
def test_generations_that_bring_nothing_end_the_run_as_patience_says(
    place, monkeypatch, patience, num_evaluations
):
    losses = [5.0, 3.0, 4.0, 4.0, 4.0, 4.0, 4.0]  # the second model, and all that follow
    measured = iter(losses)
    monkeypatch.setattr(samples, "measure", lambda run: (next(measured), ""))
    few = {"generations": 6, "num_epochs": 6, "eval_freq": 1000, "stride": 1000}  # a step each
    train_quickly(**{**TWO, **few, "patience": patience})
    assert len(losses) - len(list(measured)) == num_evaluations


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({"num_epochs": 19}, 1),  # the tiny text in windows that do not overlap: so many passes
        ({"num_epochs": 26}, 2),
        ({"num_epochs": 19, "stride": 8}, 3),
        ({"num_epochs": 99, "stride": 8}, 15),
        ({"num_epochs": 3, "generations": 5}, 5),
        ({"num_epochs": 26, "optimizer": "adamw"}, 1),
        ({"num_epochs": 26, "adapter": "lora"}, 1),
        ({"num_epochs": 26, "freeze": "blocks.0"}, 1),
    ],
)
def test_auto_is_a_number_by_the_passes_of_a_run_that_starts_anew(
    place, monkeypatch, changes, count
):
    monkeypatch.setattr(generations, "LEAST_UPDATES", 1)
    assert run_of(**{"generations": "auto", **changes}).generations.count == count


@pytest.mark.parametrize(("changes", "count"), [({"num_epochs": 26}, 1), ({"num_epochs": 160}, 3)])
def test_auto_has_no_teacher_that_few_updates_have_made(place, changes, count):
    run = run_of(**{"generations": "auto", **changes})
    assert run.progress.last_step // generations.LEAST_UPDATES in (0, count)
    assert run.generations.count == count


def test_a_longer_resume_shares_what_is_left_among_the_models_to_come(place):
    train_quickly(**{**TWO, "generations": 1, "num_epochs": 2})
    longer = {**TWO, "generations": 4, "num_epochs": 8}
    train_quickly({"resume": True}, **longer)
    state = checkpoint.load(checkpoint.step_path(Path(), 48))
    assert state["generations"]["first_steps"] == [0, 12, 24, 36]
    late = {**TWO, "generations": 9, "num_epochs": 11}  # the fourth is over as soon as it goes on
    train_quickly({"resume": True}, **late)
    state = checkpoint.load(checkpoint.step_path(Path(), 66))
    assert state["generations"]["first_steps"] == [0, 12, 24, 36, 48, 52, 56, 60, 63]


def test_each_generation_has_a_warm_up_of_its_own(place):
    run = run_of(warmup_steps=4)
    advance(run, 24)
    rates = run.history.learning_rates
    assert run.generations.first_steps == [0, 12]
    for own in (rates[:12], rates[12:]):
        assert own[:4] == pytest.approx([own[3] * n / 4 for n in (1, 2, 3, 4)])
        assert own[3] == run.config["learning_rate"]
        assert own[4:] == sorted(own[4:], reverse=True)
    with pytest.raises(ConfigError, match=r"the run's 24 steps \(num_epochs\) of 2 models: try 1"):
        run_of(warmup_steps=13)
    with pytest.raises(ConfigError, match="generations=25 are more than the run's 24 steps"):
        run_of(generations=25)


def test_another_text_goes_on_with_the_model_that_there_is(place, monkeypatch):
    monkeypatch.setattr(generations, "LEAST_UPDATES", 1)
    before = checkpoint.load(train_quickly(**TWO))
    Path("data.txt").write_text("One two three four five six, and once more. " * 25)
    more = {**TWO, "generations": "auto", "num_epochs": 30, "allow_other_text": True}
    state = checkpoint.load(train_quickly({"resume": True}, **more))
    assert state["generations"]["first_steps"] == before["generations"]["first_steps"]
    assert state["config"]["generations"] == 1


def test_where_no_process_has_a_whole_model_there_is_one(place, monkeypatch):
    run = run_of(generations="auto")
    config, corpus = {**run.config, "generations": "auto"}, run.corpus
    assert num_generations(config, corpus, 10**4) > 1
    monkeypatch.setattr(generations, "is_launched", lambda: True)
    assert num_generations(config, corpus, 10**4) > 1  # each has one with ddp
    assert num_generations({**config, "parallel": "fsdp"}, corpus, 10**4) == 1


@pytest.mark.parametrize("key", ["weights_path", "adapter", "freeze"])
def test_more_than_one_beside_weights_that_do_not_learn_anew_is_refused(key):
    value = "lora" if key == "adapter" else "x"
    with pytest.raises(ConfigError, match="generations=2 is for new models"):
        wanted({**CONFIG, "generations": 2, key: value}, {})


def test_the_loss_that_is_measured_is_without_the_teacher(place):
    run = run_of(sample_tokens=0)
    advance(run, 15)
    taught, _ = measure(run)
    run.learner.loss.teacher = None
    assert measure(run)[0] == taught
