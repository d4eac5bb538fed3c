"""Recorded steps: the same text as without, and nothing in them that a recording could not hold."""

import pytest
import torch
from tiny_model import T, V, beams_of, check_logits, clear_model, ending_after, tokens_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from generation import cuda_graph, decoding
from generation.decoding import Context
from generation.fast_weights import prepared
from model import Transformer

PROMPTS = [[3], [1, 2, 3, 4, 5], [9, 8], [7, 7, 7]]
BATCHES = [PROMPTS[:3], [[3]], [[5], [6]]]  # single tokens are replayed from the first on
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


class Recording(TorchDispatchMode):
    """Every operation with the tensors it met, as a CUDA graph keeps kernels with their memory."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        assert all(isinstance(part, torch.Tensor) for part in tree_flatten(result)[0]), (
            f"{function} gives {result}: a number that a recording would not follow"
        )
        self.calls.append((function, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        """The same operations on the same memory, and no line of Python between them."""
        for function, args, kwargs, old in self.calls:
            new = function(*args, **kwargs)
            for into, source in zip(tree_flatten(old)[0], tree_flatten(new)[0], strict=True):
                if into.data_ptr() != source.data_ptr():
                    into.copy_(source)


def recorded_on_any_device(compute, device):
    with Recording() as recording:
        result = compute()

    def replayed() -> torch.Tensor:
        recording.replay()
        return result

    return replayed


@pytest.fixture(params=DEVICES)
def model(request, monkeypatch) -> Transformer:
    """A model whose steps are replayed: by CUDA, or by a stand-in for it on the CPU."""
    model = clear_model()
    if request.param == "cpu":
        monkeypatch.setattr(cuda_graph, "recorded", recorded_on_any_device)
        monkeypatch.setattr(decoding, "REPLAYING", {"cpu"})
    return model.to(request.param)


@pytest.mark.parametrize("prompts", BATCHES, ids=str)
@torch.inference_mode()
def test_replayed_logits_are_those_of_reading_each_row_anew(model, prompts):
    context = Context(model, prompts, max_new_tokens=2 * T)
    for step in range(2 * T):  # past the overflow
        check_logits(context)
        context.append([(step * number + 1) % V for number in range(len(prompts))])
    assert context.read_one.replay is not None
    assert context.read_one.num_steps == 2 * T


@torch.inference_mode()
def test_rows_that_move_or_leave_need_no_new_recording(model):
    context = Context(model, [[3], [1, 2], [9, 8]], max_new_tokens=T)
    for tokens in ([1, 2, 3], [0, 0, 0], [4, 5, 6]):
        context.logits()
        context.append(tokens)
    recording = context.read_one.replay
    assert recording is not None
    context.select([2, 0])
    assert context.rows == [[9, 8, 3, 0, 6], [3, 1, 0, 4]]
    for _ in range(3):
        check_logits(context)
        context.append([7, 2])
    assert context.read_one.replay is recording


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_replayed_texts_and_beams_are_those_without(model, precision, monkeypatch):
    model = prepared(model, precision)

    def texts() -> list:
        ending, beams = ending_after([3, 6, 1, 2]), {"num_beams": 3, "stop_tokens": {4}}
        return [
            tokens_of(model, PROMPTS, 2 * T),
            tokens_of(model, PROMPTS, 2 * T, is_over=ending),
            beams_of(model, PROMPTS[:3], 2 * T, **beams),
        ]

    replayed = texts()
    monkeypatch.setattr(decoding, "REPLAYING", set())
    assert replayed == texts()


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without CUDA")
def test_steps_that_cannot_be_recorded_run_as_they_are_with_one_warning(monkeypatch, capsys):
    model = clear_model()
    expected = tokens_of(model, PROMPTS, 2 * T)
    cuda_graph.warn_once.cache_clear()
    monkeypatch.setattr(decoding, "REPLAYING", {"cpu"})
    for _ in range(2):
        assert tokens_of(model, PROMPTS, 2 * T) == expected
    printed = capsys.readouterr()
    assert printed.out == ""  # where the text goes
    assert printed.err.startswith("warning: steps are not recorded")
    assert printed.err.count("\n") == 1


@pytest.mark.gpu
@torch.inference_mode()
def test_a_recorded_step_reads_its_inputs_anew_and_writes_over_its_result():
    x = torch.ones(3, device="cuda")
    run = cuda_graph.recorded(lambda: x * 2, x.device)
    first = run()
    assert first.tolist() == [2.0] * 3
    x.fill_(5)
    assert run() is first
    assert first.tolist() == [10.0] * 3
