"""Which weights or layers a user's patterns name."""

from collections.abc import Collection
from fnmatch import fnmatchcase

from system.errors import ConfigError


def patterns_in(text: str) -> list[str]:
    """The patterns between commas: "blocks.0, *norm" -> ["blocks.0", "*norm"]."""
    return [pattern.strip() for pattern in text.split(",") if pattern.strip()]


def names_matching(key: str, text: str, names: Collection[str]) -> set[str]:
    """The names of which a pattern means whole parts between dots, with * and [...] as in files.

    So `blocks.1` is all of block 1 and nothing of block 10, and `qkv` is that layer of each block.
    ConfigError names the first pattern that means none; `key` is where the user wrote it.
    """
    found: set[str] = set()
    for pattern in patterns_in(text):
        own = {name for name in names if fnmatchcase(f".{name}.", f"*.{pattern}.*")}
        if not own:
            some = ", ".join(sorted({name.partition("blocks.0.")[2] for name in names} - {""}))
            raise ConfigError(
                f"config: {key}={text!r} names nothing ({pattern!r}): name parts of them, as "
                f"blocks.0, or of {some or ', '.join(sorted(names))}"
            )
        found |= own
    return found
