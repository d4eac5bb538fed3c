"""About a thousand wrong configs: each one line, exit code 2, before any work."""

import math
import random
import string

import pytest

import train
from system.errors import ConfigError
from system.process import run_command
from training import settings

BAD_VALUES = [
    *(None, [], {}, (), b"8", object(), "", "abc", "3e-4", "8", "nan", "\0", "\ud800", "x" * 10**6),
    *(math.nan, math.inf, -math.inf, -1, -0.5, 1.5, 10**400, -(10**400), 1j, [8], {"a": 1}, True),
]


@pytest.fixture
def outcome(tmp_path, monkeypatch, capsys):
    """Runs the command with a config; its exit code and stderr. Any work would be an error."""

    def no_work(config):
        raise AssertionError("work began")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "Run", no_work)
    monkeypatch.setattr(train, "check_writable", no_work)

    def run(config):
        with pytest.raises(SystemExit) as caught:
            run_command(lambda: train.train(config))
        return caught.value.code, capsys.readouterr().err

    yield run
    assert not list(tmp_path.iterdir())


def wrong_values():
    """Every key with every value that its rule does not allow."""
    for key, rule in settings.RULES.items():
        for value in BAD_VALUES:
            if not rule.is_met(value):
                yield key, value


def misspelt(key: str):
    """The key with a letter left out, doubled, exchanged, swapped with the next, or in capitals."""
    chance = random.Random(key)
    for at in range(len(key)):
        letter = chance.choice(string.ascii_lowercase)
        yield key[:at] + key[at + 1 :]
        yield key[:at] + key[at] + key[at:]
        yield key[:at] + letter + key[at + 1 :]
        yield key[:at] + key[at + 1 : at + 2] + key[at] + key[at + 2 :]


def assert_one_line(code: int, err: str, *, naming: str) -> None:
    assert code == 2
    assert err.startswith("error: config: ")
    assert err.count("\n") == 1
    assert naming in err
    assert len(err) < 500
    assert "Traceback" not in err


def test_every_key_refuses_every_wrong_value(outcome):
    cases = list(wrong_values())
    assert len(cases) > 600
    for key, value in cases:
        assert_one_line(*outcome({**train.config, key: value}), naming=f"{key}=")


def test_every_misspelt_key_gets_the_right_hint(outcome):
    num_cases = 0
    for key in settings.RULES:
        for wrong in set(misspelt(key)) - settings.RULES.keys():
            config = {**train.config, wrong: 1}
            assert_one_line(*outcome(config), naming=f"did you mean {key}?")
            num_cases += 1
    assert num_cases > 1000


def test_misspelt_options_get_the_same_hint():
    for key in settings.RULES:
        for wrong in set(misspelt(key)) - settings.RULES.keys():
            if not wrong.startswith("_"):
                with pytest.raises(ConfigError, match=f"did you mean {key}"):
                    settings.from_command_line([f"--{wrong}=1"], train.config, source=source())


def source() -> str:
    with open(train.__file__, encoding="utf-8") as file:
        return file.read()


def test_all_problems_come_in_one_message(outcome):
    config = {**train.config, "seq_len": 0, "dropout": 1.0, "learning_rate": "3e-4", "sede": 1}
    code, err = outcome(config)
    assert_one_line(code, err, naming="did you mean seed?")
    assert all(name in err for name in ("seq_len=0", "dropout=1.0", "learning_rate='3e-4'"))


def test_missing_keys_are_named(outcome):
    for key in train.config:
        config = {name: value for name, value in train.config.items() if name != key}
        assert_one_line(*outcome(config), naming=f"{key} is missing")


def test_heads_that_do_not_divide_the_width_get_the_arithmetic(outcome):
    for num_heads in (3, 5, 6, 7, 9, 300):
        code, err = outcome({**train.config, "num_heads": num_heads})
        assert_one_line(code, err, naming=f"not a multiple of num_heads={num_heads}")
