"""Which files `data` names: a file, a folder, a glob, an address, or a list of them."""

import glob
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from corpus.addresses import is_address, is_hidden, local_copies
from corpus.text import chosen_text
from system.errors import DataError
from system.files import as_path

CACHE_FOLDER = ".tokens"  # ours
PART_NAME = re.compile(r"part-\d{5}-of-(\d{5})")  # of the tokens that `data.py build` makes
Named = str | Path | Sequence[str | Path]


@dataclass
class Listing:
    """Files in the order in which they are read."""

    name: str  # of all of them
    paths: list[Path] = field(default_factory=list)
    named: set[Path] = field(default_factory=set)  # themselves, not the folder that they lie in
    num_hidden: int = 0
    num_special: int = 0  # pipes, devices
    faults: list[DataError] = field(default_factory=list)

    def add_file(self, path: Path) -> None:
        """Adds what was found in a folder, if it can be read."""
        if os.path.isfile(path) and not os.access(path, os.R_OK):
            self.faults.append(DataError(f"no permission to read ({path}): allow it to your user"))
        elif os.path.isfile(path):
            self.paths.append(path)
        elif os.path.exists(path):
            self.num_special += 1
        else:
            self.faults.append(DataError(f"a link to nowhere ({path}): mend it or remove it"))

    def add_folder(self, folder: Path, above: Sequence[tuple[int, int]] = ()) -> None:
        """Adds what lies in the folder and below, by name; what is hidden is counted."""
        try:
            status, names = os.stat(folder), sorted(os.listdir(folder))
        except PermissionError:
            problem = f"no permission to read the folder ({folder}): allow it to your user"
            self.faults.append(DataError(problem))
            return
        here = (status.st_dev, status.st_ino)
        if here in above:
            self.faults.append(DataError(f"a link to a folder above it ({folder}): remove it"))
            return
        for name in names:
            if is_hidden(name):
                self.num_hidden += name != CACHE_FOLDER
            elif os.path.isdir(folder / name):
                self.add_folder(folder / name, [*above, here])
            else:
                self.add_file(folder / name)

    def add(self, name: str | Path) -> None:
        """Adds what a part of `data` names."""
        if is_address(name):
            self.paths += local_copies(str(name))
            return
        path = as_path(name)
        if name and is_in_parts(path):
            self.paths.append(path)
        elif os.path.isdir(path) and name:
            self.add_folder(path)
        elif glob.has_magic(str(path)) and not os.path.lexists(path):
            matches = glob.glob(str(path), recursive=True)
            files = sorted(Path(match) for match in matches if not os.path.isdir(match))
            if not files:
                raise DataError(f"no file matches ({path}): correct the pattern, or quote it")
            for match in files:
                self.add_file(match)
        else:
            self.paths.append(chosen_text(name))
            self.named.add(self.paths[-1])


def is_in_parts(path: Path) -> bool:
    """Whether `data.py build` has filled the folder."""
    with suppress(OSError):  # missing, or not to be read: whoever reads it says so
        return any(PART_NAME.fullmatch(name) for name in os.listdir(path))
    return False


def files_of(data: Named) -> Listing:
    """The files that `data` names."""
    names = [data] if isinstance(data, str | os.PathLike) else data
    listing = Listing(", ".join(map(str, names))[:200])
    for name in names:
        listing.add(name)
    return listing
