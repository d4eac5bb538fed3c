"""Settings of a text: what is refused, all of it at once, and whose numbers are taken."""

import math

import numpy as np
import pytest

from generation.settings import RULES, Sampling, Settings
from system.errors import SamplingError

WRONG = {
    "temperature": [-0.1, 10**400, math.nan, math.inf, "0.8", True, None],
    "top_k": [0, 5.0, np.float64(5), "5", True],
    "top_p": [0.0, 1.1, math.nan],
    "min_p": [0, 2],
    "typical_p": [0, 2],
    "repetition_penalty": [0, math.inf],
    "no_repeat_ngram": [-1, None],
    "max_new_tokens": [-1, 2.5, None],
    "num_samples": [0],
    "num_beams": [0],
    "length_penalty": [math.nan],
    "seed": [-1, 2**63, 1.0, False],
}


@pytest.mark.parametrize("name", RULES)
def test_a_setting_that_means_nothing_is_named_with_its_value(name):
    for value in WRONG[name]:
        with pytest.raises(SamplingError) as caught:
            Settings(**{name: value})
        assert str(caught.value) == f"sampling: {name}={value!r} is not {RULES[name].words}"


def test_all_senseless_settings_are_named_together():
    with pytest.raises(SamplingError, match=r"temperature=-1 .*; top_k=0 .*; max_new_tokens=-1 "):
        Settings(max_new_tokens=-1, temperature=-1, top_k=0)


@pytest.mark.parametrize("stop", [[""], "", ["a", 5], 5, None], ids=repr)
def test_a_stop_that_is_no_text_is_named(stop):
    with pytest.raises(SamplingError, match="stop="):
        Settings(stop=stop)


@pytest.mark.parametrize("stop_tokens", [50256, "ab", [1.5], None], ids=repr)
def test_stop_tokens_that_are_no_ids_are_named(stop_tokens):
    with pytest.raises(SamplingError, match="stop_tokens="):
        Settings(stop_tokens=stop_tokens)
    Settings(stop_tokens={np.int64(5)})


def test_numbers_of_numpy_become_plain_ones():
    settings = Settings(seed=np.int64(1), top_k=np.uint8(5), temperature=np.float64(0.5), top_p=1)
    values = settings.seed, settings.top_k, settings.temperature, settings.top_p
    assert repr(values) == "(1, 5, 0.5, 1.0)"


def test_all_settings_without_effect_on_beams_are_named():
    named = "leave out temperature, top_k, no_repeat_ngram, num_samples"
    with pytest.raises(SamplingError, match=named):
        Settings(num_beams=2, temperature=0, top_k=5, no_repeat_ngram=2, num_samples=2)


def test_settings_say_what_they_are():
    assert str(Sampling(temperature=0.8, top_k=40)) == "temperature 0.8, top-k 40"
    assert str(Settings(temperature=0, repetition_penalty=1.2)) == "greedy, repetition-penalty 1.2"
    assert str(Settings(num_beams=3)) == "3 beams"
