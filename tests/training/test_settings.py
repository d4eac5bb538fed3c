"""The config keeps its contract; every way to get it wrong is named, all at once, with advice."""

import math
import re
from pathlib import Path

import pytest

import train
from system.errors import ConfigError
from training import settings
from training.settings import RULES, check, check_warmup, from_command_line

SOURCE = Path(train.__file__).read_text(encoding="utf-8")
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
WRONG = {
    "seq_len": [0, -1, 1.5, 128.0, "128", True, [128]],
    "embedding_dim": [0, "256"],
    "num_layers": [0],
    "num_heads": [0, -8],
    "dropout": [1.0, 1, -0.1, math.nan, "0.1", False],
    "ffn_hidden_dim": [0, 0.5],
    "batch_size": [0, "8"],
    "grad_accum_steps": [0],
    "learning_rate": [0, 0.0, -3e-4, math.nan, math.inf, "3e-4", [3e-4], True],
    "lr_schedule": ["linear", "", ["cosine"], 1],
    "lr_min_ratio": [-0.1, 1.1, math.inf],
    "warmup_steps": [-1, 0.5],
    "weight_decay": [-0.1, math.nan],
    "max_grad_norm": [0, math.inf],
    "num_epochs": [0, -1, 0.5],
    "patience": [-1],
    "stride": [0],
    "val_fraction": [0, 0.0, 0.51, 1, math.nan],
    "replace_invalid_utf8": [1, 0, "yes"],
    "share_unused_tokens": ["true", 1],
    "eval_freq": [0],
    "eval_tokens": [1, 0],
    "save_freq": [0],
    "keep_checkpoints": [0],
    "sample_prompt": [3, b"Once"],
    "sample_tokens": [-1],
    "output_dir": ["", " ", "a\0b", "\ud800", Path()],
    "seed": [-1, 2**31, 1.0],
    "device": ["gpu", "cuda:", "cuda:x", "cpu ", ""],
    "precision": ["fp16"],
    "compile": [True, "yes"],
    "resume": [1, Path("x.pt")],
}
LEAST_AND_MOST = {
    "dropout": (0, 0.999),
    "learning_rate": (1e-12, 10),
    "lr_min_ratio": (0, 1),
    "val_fraction": (1e-9, 0.5),
    "eval_tokens": (2, 10**12),
    "seed": (0, 2**31 - 1),
    "warmup_steps": (0, 10**6),
    "device": ("cuda", "cuda:12"),
    "resume": (True, "model_checkpoint_step_5.pt"),
}


def message_of(changes, without=()):
    config = {key: value for key, value in train.config.items() if key not in without}
    with pytest.raises(ConfigError) as caught:
        check({**config, **changes})
    assert caught.value.exit_code == 2
    return str(caught.value)


def overridden(*arguments):
    return from_command_line(arguments, train.config, source=SOURCE)


# the contract


@pytest.mark.parametrize(("key", "value"), CONTRACT.items())
def test_contract_defaults_are_exact(key, value):
    assert train.config[key] == value
    assert type(train.config[key]) is type(value)


def test_module_constants_are_as_promised():
    assert train.USE_PRETRAINED is False
    assert train.MODEL_NAME == "gpt2-small (124M)"


def test_defaults_are_sound_plain_values():
    check(train.config)
    assert {type(value) for value in train.config.values()} <= {int, float, str, bool}


def test_every_key_has_a_rule_and_a_remark_of_one_line():
    remarks = dict(settings.REMARK.findall(SOURCE))
    assert train.config.keys() == RULES.keys() == remarks.keys()
    assert all(len(remark.split()) > 1 for remark in remarks.values())


# what is wrong with a config


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, None) for key in RULES] + [(key, value) for key in WRONG for value in WRONG[key]],
    ids=repr,
)
def test_wrong_value_is_named_with_what_is_wanted(key, value):
    assert message_of({key: value}) == f"config: {key}={value!r} is not {RULES[key].wants}"


@pytest.mark.parametrize(("key", "values"), LEAST_AND_MOST.items())
def test_values_at_the_ends_of_a_range_are_allowed(key, values):
    for value in values:
        check({**train.config, key: value})


@pytest.mark.parametrize(
    ("typo", "key"),
    [
        ("learning_rat", "learning_rate"),
        ("learningrate", "learning_rate"),
        ("batchsize", "batch_size"),
        ("Batch_Size", "batch_size"),
        ("n_heads", "num_heads"),
        ("warmup-steps", "warmup_steps"),
    ],
)
def test_misspelt_key_is_answered_with_the_nearest(typo, key):
    assert message_of({typo: 1}) == f"config: unknown key {typo!r}, did you mean {key}?"


@pytest.mark.parametrize("key", ["zzz", "", 7, None])
def test_key_like_no_other_is_named_without_a_guess(key):
    assert message_of({key: 1}) == f"config: unknown key {key!r}"


@pytest.mark.parametrize("key", CONTRACT)
def test_missing_key_is_named(key):
    assert message_of({}, without=[key]) == f"config: {key} is missing"


def test_all_problems_are_in_one_message():
    changes = {"seqlen": 64, "dropout": 2, "learning_rate": "3e-4", "embedding_dim": 250}
    assert message_of(changes, without=["seed"]).split("; ") == [
        "config: unknown key 'seqlen', did you mean seq_len?",
        "seed is missing",
        "dropout=2 is not a number in [0, 1)",
        "learning_rate='3e-4' is not a number > 0",
        "embedding_dim=250 is not a multiple of num_heads=8 (250 = 31 x 8 + 2): try 248",
    ]


@pytest.mark.parametrize(("dim", "heads"), [(250, 8), (255, 8), (1, 8), (7, 3), (100, 7), (9, 10)])
def test_width_that_heads_do_not_divide_is_answered_with_the_nearest_that_works(dim, heads):
    message = message_of({"embedding_dim": dim, "num_heads": heads})
    assert f"({dim} = {dim // heads} x {heads} + {dim % heads})" in message
    advice = int(re.search(r"try (\d+)$", message)[1])
    check({**train.config, "embedding_dim": advice, "num_heads": heads})
    nearest = min(abs(multiple - dim) for multiple in range(heads, dim + heads + 1, heads))
    assert abs(advice - dim) == nearest


@pytest.mark.parametrize("num_steps", [1, 9, 10, 101])
def test_warmup_longer_than_the_run_is_answered_with_one_that_fits(num_steps):
    check_warmup(num_steps, num_steps)
    with pytest.raises(ConfigError, match=f"warmup_steps={num_steps + 1} ") as caught:
        check_warmup(num_steps + 1, num_steps)
    assert f"the run's {num_steps} steps" in str(caught.value)
    check_warmup(int(re.search(r"try (\d+)$", str(caught.value))[1]), num_steps)


@pytest.mark.parametrize(
    "value",
    [2**63, 10**5000, "9" * 10**6, [0] * 10**6],
    ids=["2**63", "5000 digits", "str", "list"],
)
def test_huge_value_is_named_in_a_short_message(value):
    assert len(message_of({"seq_len": value})) < 300


def test_check_changes_nothing():
    config = {**train.config, "dropout": 3}
    with pytest.raises(ConfigError):
        check(config)
    assert config == {**train.config, "dropout": 3}


# the command line


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        ("", {}),
        ("--batch_size 16", {"batch_size": 16}),
        ("--batch-size=16", {"batch_size": 16}),
        ("--seed 7 --seed 8", {"seed": 8}),
        ("--learning_rate 1e-3 --dropout=0", {"learning_rate": 1e-3, "dropout": 0}),
        ("--replace_invalid_utf8 true", {"replace_invalid_utf8": True}),
        ("--share-unused-tokens=False", {"share_unused_tokens": False}),
        ("--lr_schedule cosine --device cuda:1", {"lr_schedule": "cosine", "device": "cuda:1"}),
        ("--sample_prompt=--a=b", {"sample_prompt": "--a=b"}),
        ("--output_dir 12", {"output_dir": "12"}),
        ("--resume", {"resume": True}),
        ("--resume --seed 1", {"resume": True, "seed": 1}),
        ("--resume=false", {"resume": False}),
        ("--resume a/model_checkpoint_step_5.pt", {"resume": "a/model_checkpoint_step_5.pt"}),
    ],
)
def test_command_line_overrides_the_defaults(arguments, changes):
    config = overridden(*arguments.split())
    assert config == {**train.config, **changes}
    assert all(type(config[key]) is type(value) for key, value in changes.items())
    check(config)


def test_value_with_spaces_and_any_script_is_one_argument():
    assert overridden("--output_dir", "my runs/雪 ü")["output_dir"] == "my runs/雪 ü"
    assert overridden("--sample_prompt", "")["sample_prompt"] == ""


@pytest.mark.parametrize("key", RULES)
def test_every_key_can_be_set_in_both_spellings(key):
    value = str(train.config[key])
    for flag in (f"--{key}", f"--{key.replace('_', '-')}"):
        assert overridden(f"{flag}={value}") == train.config


@pytest.mark.parametrize(
    "option", ["--batch_size=x", "--num_epochs=1.0", "--learning_rate=nan", "--compile=True",
               "--replace_invalid_utf8=1", "--dropout=-0.1", "--learning_rate=1e999"]
)  # fmt: skip
def test_wrong_value_on_the_command_line_is_named(option):
    key = option[2:].split("=")[0]
    with pytest.raises(
        ConfigError, match=f"^config: {key}=[^;]* is not {re.escape(RULES[key].wants)}"
    ):
        check(overridden(option))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--batchsize 16", "command line: unknown key 'batchsize', did you mean batch_size?"),
        ("--batch 16", "command line: unknown key 'batch', did you mean batch_size?"),
        (
            "--seqlen=16 --qqq --seed 1",
            "command line: unknown key 'seqlen', did you mean seq_len?; unknown key 'qqq'",
        ),
        ("batch_size 16", "command line: stray argument 'batch_size'"),
        (
            "--batchsize 16 --dropout 2",
            "command line: unknown key 'batchsize', did you mean batch_size?; "
            "dropout=2 is not a number in [0, 1)",
        ),
    ],
)
def test_what_the_command_line_cannot_mean_is_named(arguments, message):
    with pytest.raises(ConfigError) as caught:
        overridden(*arguments.split())
    assert str(caught.value) == message


def test_option_without_its_value_is_named():
    with pytest.raises(ConfigError, match=r"--batch_size.*expected one argument.*--help"):
        overridden("--batch_size")


def test_help_lists_each_key_once_with_its_default_and_its_remark(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "500")
    with pytest.raises(SystemExit) as caught:
        overridden("--help")
    assert caught.value.code == 0
    options = capsys.readouterr().out.partition("options:")[2]
    listed = " ".join(options.split())
    for key, remark in settings.REMARK.findall(SOURCE):
        assert f"{remark} (default: {train.config[key]!r})" in listed
        assert len(re.findall(rf"--{key}\b", options)) == 1


def test_command_with_a_wrong_config_ends_at_once_in_one_line(tmp_path, run_python):
    result = run_python(train.__file__, "--dropout=2", "--seed=-1", folder=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: config: dropout=2 is not")
    assert result.stderr.count("\n") == 1
    assert "seed=-1" in result.stderr
    assert list(tmp_path.iterdir()) == []
