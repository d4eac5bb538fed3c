"""The config keeps its contract; every way to get it wrong is named, all at once, with advice."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import train
from system.errors import ConfigError
from training.settings import DEFAULTS, KEYS
from training.wanted import check, options_from, problems_of, wanted

ROOT = Path(train.__file__).parent
CONTRACT = {
    "seq_len": 128,
    "embedding_dim": 256,
    "num_layers": 4,
    "num_heads": 8,
    "dropout": 0.1,
    "ffn_hidden_dim": 1024,
    "batch_size": 8,
    "learning_rate": 3e-4,
    "num_epochs": 5,
    "eval_freq": 500,
    "save_freq": 1000,
}
BAD_VALUES = [
    *(None, [], {}, (), b"8", object(), "", "abc", "3e-4", "8", "nan", "\0", "\ud800", "x" * 10**6),
    *(math.nan, math.inf, -math.inf, -1, -0.5, 1.5, 10**400, -(10**400), 1j, [8], {"a": 1}, True),
    *(1e39, np.array([0.1, 0.2]), np.array(["auto", "b"]), torch.ones(2), set(), range(3)),
]
LEAST_AND_MOST = {
    "dropout": (0, 0.999, 1),
    "learning_rate": (1e-12, 10, math.inf),
    "lr_min_ratio": (0, 1, 1.1),
    "val_fraction": (1e-9, 0.5, 0.51),
    "eval_tokens": (2, 10**12, 1),
    "seed": (0, 2**31 - 1, 2**31),
    "warmup_steps": (0, 10**6, -1),
    "device": ("cuda", "cuda:12", "cuda:"),
    "resume": (True, "model_checkpoint_step_5.pt", 1),
    "weights_path": ("", "a/b", "a\0b"),
    "model_name": ("gpt2-small (124M)", "gpt2-xl (1558M)", "gpt3"),
}
anything = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9))


def message_of(config):
    with pytest.raises(ConfigError) as caught:
        check(config)
    assert caught.value.exit_code == 2
    return str(caught.value)


def misspelt(key):
    """The key with a letter left out, doubled, exchanged, or swapped with the next."""
    at = len(key) // 2
    start, letter, rest = key[:at], key[at], key[at + 1 :]
    wrong = {start + rest, start + letter + letter + rest, f"{start}x{rest}"}
    return sorted((wrong | {start + rest[:1] + letter + rest[1:]}) - KEYS.keys())


def test_contract_defaults_are_exact():
    kept = {key: train.config[key] for key in CONTRACT}
    assert kept == CONTRACT
    assert [type(value) for value in kept.values()] == [type(value) for value in CONTRACT.values()]


def test_the_dict_as_it_comes_is_the_table():
    constants = {"use_pretrained": train.USE_PRETRAINED, "model_name": train.MODEL_NAME}
    assert {**train.config, **constants} == DEFAULTS
    assert (train.USE_PRETRAINED, train.MODEL_NAME) == (False, "gpt2-small (124M)")
    source = (ROOT / "train.py").read_text(encoding="utf-8")
    remarks = dict(re.findall(r'^    "(\w+)": .*?,  # (.+)$', source, re.MULTILINE))
    assert remarks == {key: KEYS[key].remark for key in train.config}


def test_defaults_are_sound_plain_values():
    check(DEFAULTS)
    assert {type(value) for value in DEFAULTS.values()} <= {int, float, str, bool}


@pytest.mark.parametrize(
    "edit",
    [
        ('"batch_size": 8,  # ', '"batch_size": 16,  # '),
        (re.compile(r'"batch_size": 8,  # .*'), '"batch_size": 16,'),
        (re.compile(r'    "batch_size": 8,  # .*'), '\t"batch_size" : 16 , # mine'),
        (re.compile(r'    "batch_size": 8,  # .*\n'), ""),
        ("\n}\n\n", "\n}\nconfig |= dict(batch_size=4 * 4)\n\n"),
    ],
    ids=["another value", "no remark", "a tab and spaces", "no line", "code"],
)
def test_the_dict_may_be_edited_in_any_way(tmp_path, run_python, edit):
    old, new = edit
    source = (ROOT / "train.py").read_text(encoding="utf-8")
    is_pattern = isinstance(old, re.Pattern)
    edited = re.sub(old, new, source) if is_pattern else source.replace(old, new, 1)
    assert edited != source
    (tmp_path / "train.py").write_text(edited, encoding="utf-8")
    result = run_python("train.py", "--help", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    expected = "(8)" if new == "" else "(16)"
    assert f"{KEYS['batch_size'].remark} {expected}" in " ".join(result.stdout.split())


def test_numbers_of_numpy_and_paths_become_plain():
    given = {"batch_size": np.int64(4), "dropout": np.float32(0), "output_dir": Path("a")}
    config = wanted(given, {}).config
    assert [config[key] for key in given] == [4, 0.0, "a"]
    assert type(config["batch_size"]) is int


def test_every_key_refuses_every_wrong_value_in_one_line():
    cases = [(k, v) for k in KEYS for v in BAD_VALUES if not KEYS[k].rule.is_met(v)]
    assert len(cases) > 600
    for key, value in cases:
        message = message_of({**train.config, key: value})
        assert message.startswith("config: ")
        assert f"{key}=" in message
        assert "\n" not in message
        assert len(message) < 500


def test_a_wrong_config_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="did you mean learning_rate"):
        train.train({**train.config, "learning_rat": 1e-3})
    assert not list(tmp_path.iterdir())


@given(st.dictionaries(st.sampled_from(sorted(KEYS)), anything, max_size=6))
def test_any_config_is_taken_or_refused_in_one_line_that_names_each_wrong_key(config):
    wrong = {key for key, value in config.items() if not KEYS[key].rule.is_met(value)}
    problems = problems_of(config)
    named = {key for key in KEYS if re.search(rf"\b{key}=", "; ".join(problems))}
    assert wrong <= named <= wrong | {"embedding_dim", "num_heads"}
    assert all("\n" not in problem for problem in problems)


def test_values_at_the_ends_of_a_range_are_allowed_and_none_beyond():
    for key, (*right, wrong) in LEAST_AND_MOST.items():
        for value in right:
            check({key: value})
        assert message_of({key: wrong}) == f"config: {key}={wrong!r} is not {KEYS[key].rule.wants}"


def test_every_misspelt_key_gets_the_right_hint_in_dict_and_option():
    cases = [(key, wrong) for key in KEYS for wrong in misspelt(key)]
    assert len(cases) > 100
    for key, wrong in cases:
        hint = f"unknown key {wrong!r}, did you mean {key}?"
        assert message_of({wrong: 1}) == f"config: {hint}"
        with pytest.raises(ConfigError, match=re.escape(f"command line: {hint}")):
            options_from([f"--{wrong}=1"], train.config)


def test_key_like_no_other_is_named_without_a_guess():
    for key in ("zzz", "", 7, None, ("a", "b"), "x" * 10**6):
        message = message_of({key: 1})
        assert message.startswith("config: unknown key ")
        assert "did you mean" not in message
        assert len(message) < 200


def test_all_problems_are_in_one_message():
    changes = {"seqlen": 64, "dropout": 2, "learning_rate": "3e-4", "embedding_dim": 250}
    assert message_of(changes).split("; ") == [
        "config: unknown key 'seqlen', did you mean seq_len?",
        "dropout=2 is not a number in [0, 1), or auto",
        "learning_rate='3e-4' is not a number > 0, or auto",
        "embedding_dim=250 is not a multiple of num_heads=8 (250 = 31 x 8 + 2): try 248",
    ]


@given(st.integers(1, 2000), st.integers(1, 40))
def test_width_that_heads_do_not_divide_is_answered_with_the_nearest_that_works(dim, heads):
    assume(dim % heads)
    message = message_of({"embedding_dim": dim, "num_heads": heads})
    advice = int(re.search(r"try (\d+)$", message)[1])
    check({"embedding_dim": advice, "num_heads": heads})
    nearest = min(abs(multiple - dim) for multiple in range(heads, dim + heads + 1, heads))
    assert abs(advice - dim) == nearest
