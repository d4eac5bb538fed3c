"""Corpora by name: `python data.py get tinystories` puts one where train.py finds it."""

import csv
import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from corpus import text
from corpus.addresses import FOLDER
from system import fetch
from system.command_line import Parser
from system.errors import ConfigError, DataError, DownloadError, OutputError
from system.files import exclusive, make_folder
from system.process import log

TABLE_PATH = Path(__file__).parent.parent / "assets" / "corpora.csv"
HUB = "https://huggingface.co"  # or what HF_ENDPOINT in the environment names


def known_corpora() -> dict[str, list[dict[str, str]]]:
    """The rows of assets/corpora.csv by name: place beside train.py, address, bytes, sha256."""
    corpora = {}
    for row in csv.DictReader(TABLE_PATH.read_text(encoding="utf-8").splitlines()):
        corpora.setdefault(row["name"], []).append(row)
    return corpora


def main(arguments: Sequence[str]) -> None:
    """`python data.py get NAME...`."""
    parser = Parser(prog="data.py get", description="Fetches text to where train.py finds it.")
    names = ", ".join(known_corpora())
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"any of {names}")
    get(parser.parse_args(arguments).names)


def get(names: Sequence[str]) -> None:
    """Fetches what is not here yet; DownloadError, or OutputError where it has no room."""
    corpora = known_corpora()
    for name in names:
        if name not in corpora:
            raise ConfigError(f"no such corpus ({name}): choose from {', '.join(corpora)}")
    for name in names:
        rows = corpora[name]
        check_room(name, [row for row in rows if not (text.PROJECT / row["place"]).exists()])
        for row in rows:
            get_file(row)
        place = Path(rows[0]["place"]).parts[0]
        path = place if text.PROJECT.samefile(Path.cwd()) else text.PROJECT / place
        option = "" if place in text.TEXT_NAMES else f" --data {shlex.quote(str(path))}"
        log(f"{name} is complete; next: python train.py{option}")


def check_room(name: str, rows: Sequence[dict[str, str]]) -> None:
    """OutputError if the files would not fit on the disk."""
    wanted, free = sum(int(row["bytes"]) for row in rows), shutil.disk_usage(text.PROJECT).free
    if wanted > free:
        raise OutputError(
            f"no room for {name} ({text.PROJECT} has {free / 1e9:.1f} GB): "
            f"free {wanted / 1e9:.1f} GB there"
        )


def get_file(row: dict[str, str]) -> None:
    path = text.PROJECT / row["place"]
    file = fetch.RemoteFile(int(row["bytes"]), row["sha256"])
    make_folder(path.parent)
    make_folder(text.PROJECT / FOLDER)
    with exclusive(text.PROJECT / FOLDER / f"{path.name}.lock"):  # a second one finds it complete
        if not path.exists():
            address = row["address"].replace(
                HUB, (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
            )
            try:
                fetch.fetch([address], path, file)
            except DownloadError as error:
                raise DownloadError(
                    f"cannot fetch {path.name} ({error}): try again, it goes on where it was; set "
                    f"HF_ENDPOINT to a mirror; or put the file into {path.parent} by hand"
                ) from error
        elif fault := fetch.fault_of(path, file):
            raise DataError(f"another file is in its place ({path} has {fault}): move it away")
