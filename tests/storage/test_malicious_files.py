"""No file can make Python run, open or fetch anything, or take memory beyond its size."""

import json
from pathlib import Path

from malicious_files import good, write_all

TESTS = Path(__file__).parent.parent


def test_every_malicious_file_is_refused_and_nothing_was_run_opened_or_fetched(
    tmp_path, run_python
):
    place, work, good_path = tmp_path / "malicious", tmp_path / "work", tmp_path / "good.pt"
    place.mkdir()
    work.mkdir()
    good_path.write_bytes(good())
    counts = write_all(place)
    done = run_python(TESTS / "load_malicious.py", place, good_path, folder=work)
    assert done.returncode == 0, done.stderr[-3000:]
    loading = json.loads(done.stdout)
    assert len(loading["verdicts"]) == sum(counts.values())
    assert [name for name, verdict in loading["verdicts"].items() if verdict == "loaded"] == []
    assert loading["events"] == []
    assert list(work.iterdir()) == []
    assert loading["megabytes"] < 100  # the bombs would need 200 MB, the shapes 40 GB
    assert "os system" in loading["verdicts"]["pickle os system.pt"]
    assert "nothing was run" in loading["verdicts"]["pickle in a dict.pt"]
