"""What a run is asked for: options beside the dict, and what a resume takes from either."""

import pytest

import train
from system.errors import ConfigError
from training.settings import DEFAULTS, EARLIER_DEFAULTS, KEYS
from training.wanted import check, options_from, wanted


def overridden(*arguments):
    return options_from(arguments, train.config)


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        ("", {}),
        ("--batch_size 16", {"batch_size": 16}),
        ("--batch-size=16", {"batch_size": 16}),
        ("--learning_rate 1e-3 --dropout=0", {"learning_rate": 1e-3, "dropout": 0}),
        ("--share-unused-tokens=False", {"share_unused_tokens": False}),
        ("--lr_schedule cosine --device cuda:1", {"lr_schedule": "cosine", "device": "cuda:1"}),
        ("--sample_prompt=--a=b", {"sample_prompt": "--a=b"}),
        ("--output_dir 12", {"output_dir": "12"}),
        ("--use_pretrained", {"use_pretrained": True}),
        ("--resume", {"resume": True}),
        ("--resume=false", {"resume": False}),
        ("--resume no --use_pretrained 1", {"resume": False, "use_pretrained": True}),
        ("--resume a/model_checkpoint_step_5.pt", {"resume": "a/model_checkpoint_step_5.pt"}),
    ],
)
def test_options_say_what_they_say(arguments, changes):
    options = overridden(*arguments.split())
    assert options == changes
    assert all(type(options[key]) is type(value) for key, value in changes.items())
    check(options)


def test_how_an_option_is_read_does_not_depend_on_the_value_in_the_dict():
    for value in (0, 1, 0.5):
        assert options_from(["--dropout", "0.1"], {**train.config, "dropout": value}) == {
            "dropout": 0.1
        }
    assert options_from(["--resume", "false"], {**train.config, "resume": "a"}) == {"resume": False}


def test_every_key_can_be_set_in_both_spellings():
    for key, value in DEFAULTS.items():
        for flag in (f"--{key}", f"--{key.replace('_', '-')}"):
            assert overridden(f"{flag}={value}") == {key: value}


@pytest.mark.parametrize("option", ["--batch_size=x", "--num_epochs=1.0", "--compile=True"])
def test_wrong_value_on_the_command_line_is_named(option):
    with pytest.raises(ConfigError, match=f"{option[2:].split('=')[0]}=.* is not "):
        check(overridden(option))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--batch 16", "command line: unknown key 'batch', did you mean batch_size?"),
        ("--seqlen=16 --qqq", "command line: unknown key 'seqlen', did you mean seq_len?; unknown "
         "key 'qqq'"),
        ("batch_size 16", "command line: stray argument 'batch_size'"),
        ("--seq_len=--", "--seq_len=--: -- is no value: see train.py --help"),
        ("--qqq 16 --dropout 2", "command line: unknown key 'qqq'; dropout=2 is not a number in "
         "[0, 1), or auto"),
    ],
)  # fmt: skip
def test_what_the_command_line_cannot_mean_is_named(arguments, message):
    with pytest.raises(ConfigError) as caught:
        overridden(*arguments.split())
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("options", "useless"),
    [
        ({"resume": True, "weights_path": "a"}, "--weights_path"),
        ({"resume": True, "use_pretrained": True}, "--use_pretrained"),
        ({"allow_other_text": True}, "--allow_other_text"),
        ({"lr_schedule": "constant", "lr_min_ratio": 0.5}, "--lr_min_ratio"),
        ({"max_minutes": 2, "num_epochs": 7}, "--num_epochs"),
        ({"model_name": "gpt2-xl (1558M)"}, "--model_name"),
        ({"weights_path": "a", "use_pretrained": True}, "--use_pretrained"),
        ({"seeds": 3, "estimate": True}, "--seeds"),
    ],
)
def test_an_option_without_effect_is_named(options, useless):
    with pytest.raises(ConfigError, match=f"{useless} has no effect"):
        wanted(train.config, options)
    wanted({**train.config, **options}, {})  # in the dict it may wait for its turn


def test_one_question_is_answered_at_a_time():
    with pytest.raises(ConfigError, match="estimate and find_lr: ask for one of them at a time"):
        wanted({**train.config, "find_lr": True}, {"estimate": True})


def test_help_lists_each_key_with_its_remark_and_the_value_of_the_dict(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "500")
    with pytest.raises(SystemExit) as caught:
        options_from(["--help"], {**train.config, "seed": 7})
    assert caught.value.code == 0
    listed = " ".join(capsys.readouterr().out.partition("options:")[2].split())
    for key in KEYS:
        assert f"{KEYS[key].remark} ({7 if key == 'seed' else DEFAULTS[key]!r})" in listed


def test_help_does_not_wait_for_torch(tmp_path, run_python):
    code = """
import sys, train
sys.argv[1:] = ['--help']
try:
    train.main()
finally:
    print(*sys.modules)
"""
    result = run_python("-c", code, folder=tmp_path)
    assert "--batch_size" in result.stdout
    assert {"torch", "numpy"}.isdisjoint(result.stdout.split())


def test_a_resume_takes_the_runs_own_config_but_for_what_was_written_since():
    began = wanted({**train.config, "batch_size": 16}, {"num_epochs": 2, "dropout": 0.2})
    again = wanted({**train.config, "batch_size": 16, "eval_freq": 7}, {"dropout": 0.3})
    assert again.resumed(began.config, began.script) == {
        **DEFAULTS, "batch_size": 16, "num_epochs": 2, "eval_freq": 7, "dropout": 0.3,
    }  # fmt: skip


def test_a_run_of_an_earlier_version_keeps_the_defaults_that_it_began_with():
    unedited = wanted(train.config, {})
    assert unedited.resumed({"num_epochs": 2, "gone": 1}, {}) == {
        **EARLIER_DEFAULTS, "num_epochs": 2,
    }  # fmt: skip
    script = {"optimizer": "adamw", "lr_schedule": "decay", "learning_rate": 1e-3}
    edited = wanted({**train.config, "learning_rate": 2e-3, "lr_schedule": "cosine"}, {})
    assert edited.resumed(script, script) == {
        **EARLIER_DEFAULTS, "learning_rate": 2e-3, "lr_schedule": "cosine",
    }  # fmt: skip


def test_one_or_several_texts_follow_the_option():
    assert overridden("--data", "a.txt", "--seed", "1") == {"data": "a.txt", "seed": 1}
    assert overridden("--data", "a.txt", "b/", "--seed", "1") == {
        "data": ["a.txt", "b/"],
        "seed": 1,
    }
