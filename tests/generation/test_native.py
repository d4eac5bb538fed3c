"""Few tokens in C++: the same numbers as torch's, and torch's where there is no compiler."""

import gc
from copy import deepcopy

import pytest
import torch
from test_fast_weights import VARIANTS, variant
from tiny_model import SIZES, T, V, beams_of, check_logits, clear_model, ending_after, tokens_of
from torch import nn

from generation import fast_weights, native
from generation.decoding import Context
from generation.fast_weights import prepared
from generation.kv_cache import read, stored
from generation.native import NativeLinear, NativeStates
from model import Transformer
from storage.checkpoint import build_model
from system import choice
from system.choice import Choice

PROMPTS = [[3], [1, 2, 3, 4, 5], [9, 8], [0] * (2 * T), [5, 6, 7, 8, 9, 10, 0]]
ERRORS = {torch.float32: 1e-6, torch.bfloat16: 6e-3, torch.int8: 1e-2}
NEAR = {"float32": 1e-4, "bfloat16": 4e-2, "int8": 6e-2}  # of logits near 10, two layers
needs_compiler = pytest.mark.skipif(native.library() is None, reason="no C++ compiler here")


@pytest.fixture
def always(monkeypatch) -> None:
    """In C++ whatever is the fastest, up to eight tokens at once."""
    monkeypatch.setattr(native, "FEW", dict.fromkeys(ERRORS, 8))
    monkeypatch.setattr(
        fast_weights,
        "fastest_layer",
        lambda model, names: (fast_weights.native, getattr(torch, names[0])),
    )


@needs_compiler
@pytest.mark.parametrize("dtype", ERRORS, ids=str)
@pytest.mark.parametrize("num_inputs", [2, 33, 64])
@pytest.mark.parametrize("num_outputs", [1, 5, 131])
@pytest.mark.parametrize("has_bias", [False, True])
@torch.no_grad()
def test_few_rows_are_multiplied_up_to_the_rounding_of_the_weights(
    num_outputs, num_inputs, has_bias, dtype
):
    torch.manual_seed(0)
    product = nn.Linear(num_inputs, num_outputs, bias=has_bias)
    layer = fast_weights.native(product.weight, product.bias, dtype)
    for shape in [(num_inputs,), (1, num_inputs), (1, 2, num_inputs), (9, 3, num_inputs)]:
        x = torch.randn(shape)
        expected, result = product(x), layer(x)
        size = product.weight.abs().amax() * x.abs().sum(-1).amax() + 1  # of what is summed
        torch.testing.assert_close(result.float(), expected, rtol=0, atol=ERRORS[dtype] * size)


@needs_compiler
@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("precision", NEAR)
@pytest.mark.parametrize("prompts", [*([p] for p in PROMPTS), PROMPTS[:3], PROMPTS], ids=str)
@torch.inference_mode()
def test_logits_are_those_of_reading_each_window_past_the_overflow_too(prompts, precision):
    model = clear_model()
    fast = prepared(model, precision)
    assert isinstance(fast.hidden_states, NativeStates)
    context = Context(fast, prompts, max_new_tokens=3 * T)
    tolerance = NEAR[precision]
    assert context.cache.memory.dtype == getattr(torch, precision)
    for step in range(3 * T):
        logits = context.logits()
        exact = Context(model, context.rows, max_new_tokens=1).logits()
        torch.testing.assert_close(logits, exact, rtol=tolerance, atol=10 * tolerance)
        context.append([step * (number + 1) % V for number in range(len(prompts))])


@pytest.mark.parametrize("factor", [0, 1e-38, 1e-9, 1, 3e5, 1e36])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 64)])
def test_eight_bits_keep_numbers_to_a_127th_of_the_largest_in_their_slot(shape, factor):
    numbers = factor * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    kept = stored(numbers, torch.int8)
    assert kept.shape == (*shape[:-1], shape[-1] + 1)
    largest = numbers.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    assert ((read(kept) - numbers).abs() <= largest / 127).all()


@needs_compiler
@pytest.mark.usefixtures("always")
@torch.inference_mode()
def test_slots_of_eight_bits_are_the_same_from_torch_and_from_cpp():
    model = prepared(clear_model(), "int8")
    together = Context(model, [PROMPTS[1]], max_new_tokens=2)
    alone = Context(model, [PROMPTS[1][:2]], max_new_tokens=5)
    together.logits()
    for token in PROMPTS[1][2:]:
        alone.logits()
        alone.append([token])
    alone.logits()
    expected, found = (read(one.cache.memory[:, 0, 0, :, :5]) for one in (together, alone))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02 * expected.abs().max().item())


@needs_compiler
@pytest.mark.usefixtures("always")
@torch.inference_mode()
def test_rows_may_leave_and_change_places():
    context = Context(prepared(clear_model(), "float32"), PROMPTS, max_new_tokens=T)
    for kept in ([4, 0, 2], [2, 1], [0]):
        context.select(kept)
        for token in range(3):
            check_logits(context)
            context.append([token] * len(kept))


@needs_compiler
@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("precision", NEAR)
def test_a_text_is_the_same_beside_others_and_with_guesses(precision):
    torch.manual_seed(0)
    model = build_model({**SIZES, "seq_len": 40, "embedding_dim": 96}, V).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model = prepared(model, precision)
    prompts = [[1, 2, 3], [4, 5], [6]]

    def all_logits(prompts: list[list[int]]) -> torch.Tensor:
        context, found = Context(model, prompts, max_new_tokens=20), []
        for _ in range(20):
            found.append(context.logits())
            context.append(found[-1].argmax(-1).tolist())
        return torch.stack(found, 1)  # (B, T, V)

    with torch.inference_mode():
        together = all_logits(prompts)
        alone = torch.cat([all_logits([prompt]) for prompt in prompts])
    # the prompt is read by torch, whose sums depend on how many rows there are
    torch.testing.assert_close(
        together, alone, rtol=0, atol=1e-5 if precision == "float32" else 0.1
    )
    ending = ending_after([3, 20, 7])
    texts = tokens_of(model, prompts, 20, is_over=ending)
    assert [len(text) for text in texts] == [3, 20, 7]
    plain = tokens_of(model, prompts, 20, most_guesses=0)
    if precision == "float32":
        assert texts == [plain[0][:3], plain[1], plain[2][:7]]


@needs_compiler
@pytest.mark.usefixtures("always")
def test_beams_are_those_of_torch():
    model = clear_model()
    settings = {"num_beams": 3, "stop_tokens": {4}}
    expected = beams_of(model, PROMPTS[:3], 2 * T, **settings)
    assert beams_of(prepared(model, "float32"), PROMPTS[:3], 2 * T, **settings) == expected


@needs_compiler
@pytest.mark.usefixtures("always")
def test_a_copy_outlives_what_it_is_a_copy_of():
    model = prepared(clear_model(), "int8")
    expected = tokens_of(model, PROMPTS, T)
    model = deepcopy(model)
    gc.collect()
    assert tokens_of(model, PROMPTS, T) == expected


def hooked() -> Transformer:
    model = clear_model()
    model.blocks[1].register_forward_hook(lambda module, inputs, result: 2 * result)
    return model


def of_two_sizes() -> Transformer:
    model = clear_model()
    model.blocks[1].feed_forward.expand = nn.Linear(12, 28)
    model.blocks[1].feed_forward.contract = nn.Linear(28, 12)
    return model.eval()


def with_another_head() -> Transformer:
    return variant(head=True)


OTHERS = {
    **{name: lambda changes=changes: variant(**changes) for name, changes in VARIANTS.items()},
    "hook": hooked,
    "two sizes": of_two_sizes,
    "head": with_another_head,
}


@needs_compiler
@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("build", OTHERS.values(), ids=OTHERS)
def test_another_structure_is_computed_as_it_is_written(build):
    model = build()
    expected = tokens_of(model, PROMPTS, 2 * T)
    assert tokens_of(prepared(model, "float32"), PROMPTS, 2 * T) == expected


def chosen(precision: str) -> set[str]:
    """The ways that are asked about, none of them measured."""
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            choice, "fastest", lambda ways, **_: asked.extend(ways) or Choice([*ways][-1])
        )
        model = prepared(clear_model(), precision)
        assert len(tokens_of(model, PROMPTS, 3)) == len(PROMPTS)
    return {name.split()[1] for name in asked}


@pytest.fixture
def anew(monkeypatch, tmp_path):
    """Nothing is remembered, nothing compiled."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.cache_clear()
    yield tmp_path
    native.library.cache_clear()


BROKEN = ["/nowhere/c++", "false", "true", "c++ -nonsense", "echo", "", "c++ '"]


@pytest.mark.parametrize("compiler", BROKEN)
def test_without_a_compiler_torch_computes_all_and_nothing_is_said(
    anew, compiler, monkeypatch, capfd
):
    monkeypatch.setenv("CXX", compiler)
    assert chosen("int8") == {"Int8Linear"}
    assert chosen("auto") == {"CastLinear", "PackedLinear"}
    assert capfd.readouterr() == ("", "")


@needs_compiler
def test_it_is_compiled_once_for_each_processor(anew):
    assert "native" in chosen("bfloat16")
    (path,) = anew.rglob("*.so")
    before = path.stat().st_mtime_ns
    native.library.cache_clear()
    assert "native" in chosen("int8")
    assert path.stat().st_mtime_ns == before


@needs_compiler
def test_a_damaged_file_is_made_again(anew, monkeypatch):
    native.library()
    (path,) = anew.rglob("*.so")
    whole = path.read_bytes()
    monkeypatch.setenv("XDG_CACHE_HOME", str(anew / "other"))
    damaged = anew / "other" / path.relative_to(anew)
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(whole[:100])
    native.library.cache_clear()
    assert "native" in chosen("int8")
    assert len(damaged.read_bytes()) == len(whole)


@pytest.mark.parametrize("folder", ["file/cache", "relative"])
def test_a_folder_that_cannot_be_written_only_costs_speed(anew, folder, monkeypatch):
    (anew / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(anew / folder) if "/" in folder else folder)
    assert chosen("int8") == {"Int8Linear"}


def is_in_cpp(way: str) -> bool:
    return way.endswith("native")


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16", "float16", "int8"])
def test_the_way_that_is_found_the_fastest_is_taken(precision, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # where nothing is remembered
    monkeypatch.setattr(choice, "fastest", lambda ways, **_: Choice(max(ways, key=is_in_cpp)))
    result = prepared(clear_model(), precision)
    is_native = isinstance(result.blocks[0].feed_forward.expand, NativeLinear)
    wanted = precision != "float16" and native.library() is not None
    assert is_native == wanted == ("hidden_states" in vars(result))


def test_a_trained_table_whose_products_cancel_excludes_no_type(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choice, "SMALL", 1)  # all is measured
    monkeypatch.setattr(choice, "HOPELESS", 1e9)  # and all is fast enough
    found = []
    fastest = choice.fastest
    monkeypatch.setattr(
        choice, "fastest", lambda *ways, **rest: found.append(fastest(*ways, **rest)) or found[-1]
    )
    model = clear_model()
    with torch.no_grad():
        model.input_embedding.embedding.weight[:] = 0.1  # noise times this is near 0
    for precision in ("auto", "int8"):
        prepared(model, precision)
    assert {name.split()[0] for name in found[0].rates} >= {"float32", "bfloat16"}
    assert "int8 Int8Linear" in found[1].rates
