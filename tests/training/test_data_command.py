"""`python data.py PATH` shows the whole report, and train.py its first lines before step 0."""

import re
import threading

import pytest

from reports.history import in_time
from system.errors import ConfigError, DataError
from training import begin, data_command
from training.description import as_text
from training.wanted import wanted


@pytest.fixture
def shown(text_folder, tiny_config, capsys):
    """Runs the command; what it printed."""

    def run(*arguments):
        config = {**tiny_config, "use_pretrained": False}
        data_command.main(arguments, config)
        return capsys.readouterr().out

    return run


def test_the_command_shows_everything_and_writes_a_page(shown, text_folder):
    text = shown("data.txt", "--html")
    names = [line.split()[0] for line in text.splitlines() if line[:1].strip()]
    rows = ["device", "text", "near", "baselines", "model", "training", "samples"]
    assert [name for name in names if name in rows] == rows
    pattern = r"about [\d.e-]+ s a step here, [\d.]+ \w+ in all, and [\d.]+ GB of memory\n"
    assert re.search(pattern, text)
    assert "documents have up to" in text
    assert "####" in text
    assert text.endswith("written   data_report.html\n")
    page = (text_folder / "data_report.html").read_text(encoding="utf-8")
    assert "documents have up to" in page
    assert {path.name for path in text_folder.iterdir()} == {
        ".tokens",
        "data.txt",
        "data_report.html",
    }


def test_wrong_uses_are_errors(shown, text_folder):
    with pytest.raises(DataError):
        shown("missing.txt")
    with pytest.raises(ConfigError, match="unrecognized"):
        shown("data.txt", "--pdf")
    with pytest.raises(ConfigError, match="required"):
        shown()


def test_a_start_says_it_in_at_most_twelve_lines(trained):
    before = trained.stdout.partition("step      0")[0].rstrip().splitlines()
    assert before[0].startswith("device    ")
    assert len(before) <= 12
    assert any(line.startswith("note      ") for line in before)
    paced = re.findall(
        r"^pace      about [\d.e-]+ s a step, [\d.]+ \w+ to go$", trained.stdout, re.M
    )
    assert len(paced) == 1


def test_a_start_does_not_wait_for_a_long_look_at_its_text(text_folder, tiny_config, monkeypatch):
    may_end = threading.Event()
    monkeypatch.setattr("corpus.corpus.MAX_SAMPLED", 9)
    monkeypatch.setattr("corpus.corpus.FACTS_SECONDS", 0.01)
    monkeypatch.setattr("corpus.corpus.facts_of", lambda *_: may_end.wait() and {})
    asked = wanted({**tiny_config, "use_pretrained": False}, {})
    run = begin.begin(asked)
    rows = dict(run.about["about"])
    may_end.set()
    assert run.about["facts"] == {}
    assert "being looked at" in rows["text"]
    assert "note" not in rows


def test_of_many_notes_the_first_are_shown_at_the_start():
    rows = [("a", "1\n2"), *[("note", str(i)) for i in range(4)]]
    assert as_text(rows, max_lines=4) == "a         1\n          2\nnote      0\nnote      1"
    assert [as_text(rows, max_lines=lines).count("note") for lines in (0, 3, 5, 9)] == [1, 1, 3, 4]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.123, "0.12 s"), (59, "59 s"), (90, "1.5 minutes"), (7200, "2 hours"), (1e6, "12 days")],
)
def test_times_have_a_unit_that_suits(seconds, said):
    assert in_time(seconds) == said
