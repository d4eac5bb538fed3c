"""Loads every file of a folder under an audit hook, and prints what Python was asked to do."""

import codecs
import json
import sys
from contextlib import suppress
from pathlib import Path

from storage import checkpoint, run_folder
from system.errors import CheckpointError

HARMLESS = ("open", "os.listdir", "os.scandir", "os.putenv", "object.__getattr__", "sys._getframe")
WATCHED = ("os.", "subprocess", "socket", "shutil", "exec", "ctypes", "pty", "webbrowser", "open")


def peak_megabytes() -> float:
    """The most memory that this process has had, without what its parent had before it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    place, good = Path(sys.argv[1]), Path(sys.argv[2])
    checkpoint.load(good)  # all that is imported on first use is imported now
    run_folder.glance(good)
    codecs.lookup("cp437")  # zipfile's, for names that are not UTF-8
    events: list[str] = []
    is_watching = True

    def watch(event: str, arguments: tuple) -> None:
        if not is_watching or not event.startswith(WATCHED):
            return
        is_reading = event == "open" and arguments[1] in (None, "r", "rb")
        if not is_reading and event not in HARMLESS[1:]:
            events.append(f"{event} {arguments!r}"[:200])

    sys.addaudithook(watch)
    before = peak_megabytes()
    verdicts = {}
    for path in sorted(place.iterdir()):
        try:
            checkpoint.load(path)
            verdicts[path.name] = "loaded"
        except CheckpointError as error:
            verdicts[path.name] = str(error)
        with suppress(CheckpointError):
            run_folder.glance(path)
    is_watching = False
    grown = peak_megabytes() - before
    print(json.dumps({"events": events, "verdicts": verdicts, "megabytes": grown}))


if __name__ == "__main__":
    main()
