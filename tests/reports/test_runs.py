"""Runs side by side: repetitions are one row, the best comes first, thinning keeps extremes."""

import csv
import io
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import recorded

from reports import runs
from system.errors import CheckpointError


@pytest.fixture
def three(tmp_path):
    """Two runs that differ in their seeds, and a better one of another width."""
    recorded(tmp_path / "a", seed=1, worse=0.3)
    recorded(tmp_path / "b", seed=2, worse=0.6)
    recorded(tmp_path / "c", seed=1, embedding_dim=16)
    return runs.load_all([tmp_path / name for name in "abc"])


def test_runs_that_differ_in_the_seed_alone_are_one_row_with_mean_and_spread(three):
    first, second = runs.rows_of(runs.groups_of(three))
    assert (first["run"], first["seeds"], first["embedding_dim"]) == ("c", 1, "16")
    assert (second["run"], second["seeds"], second["embedding_dim"]) == ("a, b", 2, "8")
    bits = [run.best["bits_per_byte"] for run in three[:2]]
    assert second["bits_per_byte"] == pytest.approx(statistics.fmean(bits))
    assert second["bits_per_byte_spread"] == pytest.approx(statistics.stdev(bits))
    assert np.isnan(first["bits_per_byte_spread"])


def test_the_table_is_text_and_csv(three):
    rows = runs.rows_of(runs.groups_of(three))
    head, *lines = runs.as_text(rows).splitlines()
    assert head.split()[:5] == ["run", "seeds", "bits", "a", "byte"]
    assert "1.150 ± 0.071" in lines[1]
    assert len({len(line) for line in (head, *lines)}) == 1
    found = list(csv.DictReader(io.StringIO(runs.as_csv(rows))))
    assert [row["run"] for row in found] == ["c", "a, b"]
    assert float(found[0]["bits_per_byte"]) == pytest.approx(three[2].best["bits_per_byte"])
    assert found[0]["bits_per_byte_spread"] == ""
    assert list(found[0])[:3] == ["run", "seeds", "bits_per_byte"]


def test_a_row_has_the_best_evaluation_and_what_the_run_took(three):
    numbers = three[2].numbers
    assert numbers["step"] == three[2].best["step"] == 400
    assert (numbers["gigabytes"], numbers["minutes"]) == (1.0, 40.0)
    assert numbers["tokens_per_second"] == 120.0  # the median
    assert three[2].is_cut_short


def test_folders_of_one_name_are_told_apart(tmp_path):
    places = [recorded(tmp_path / place / "run") for place in "ab"]
    assert [run.name for run in runs.load_all(places)] == [str(place) for place in places]


@pytest.mark.parametrize("content", [None, b"", b'{"text": "a story"}\n', b"\xff\x00", b"[1]\n2\n"])
def test_what_is_no_history_is_an_error_that_names_the_path(tmp_path, content):
    if content is not None:
        (tmp_path / "history.jsonl").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"no history of a run \(.*history.jsonl\)"):
        runs.load(tmp_path)


def test_a_history_without_a_report_and_a_torn_line_are_read(tmp_path):
    path = recorded(tmp_path, num_reports=3) / "history.jsonl"
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(rows)[:-20])
    assert len(runs.load(path).lines) == 3
    path.write_bytes(rows[0] + b'{"step": 3, "val_loss": 2.0}\n')
    no_report = runs.load(path)
    assert no_report.lines == []
    for number in (1, 2):
        assert "  -  " in runs.as_text(runs.rows_of(runs.groups_of([no_report] * number)))


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=500),
    st.integers(min_value=4, max_value=100),
)
def test_thinned_curves_keep_their_ends_and_extremes(values, most):
    values = np.array(values)
    kept = runs.thinned(values, most)
    assert len(kept) <= most
    assert (np.diff(kept) > 0).all()
    assert (kept[0], kept[-1]) == (0, len(values) - 1)
    assert (values[kept].min(), values[kept].max()) == (values.min(), values.max())


def test_curves_together_have_a_mean_and_a_spread_where_all_of_them_are():
    first = np.array([0.0, 1, 2, 3]), np.array([4.0, 3, 2, 1])
    second = np.array([0.0, 2]), np.array([6.0, 4])
    x, mean, spread = runs.together([first, second])
    assert x.tolist() == [0, 1, 2]
    assert mean.tolist() == [5, 4, 3]
    assert spread == pytest.approx([2**0.5] * 3)
    x, mean, spread = runs.together([first])
    assert (mean.tolist(), spread.tolist()) == ([4, 3, 2, 1], [0] * 4)
