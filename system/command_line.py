"""How the commands read their options."""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from system.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser of whole names, with dashes or underscores; its errors are ConfigErrors."""

    def __init__(self, **form: Any) -> None:
        super().__init__(allow_abbrev=False, **form)

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As in argparse, which before Python 3.13 reads `--name=--` as an empty list."""
        words = sys.argv[1:] if args is None else args
        if empty := next((word for word in words if re.fullmatch(r"--[\w-]+=--", word)), None):
            self.error(f"{empty}: -- is no value")
        return super().parse_known_args([self._as_declared(word) for word in words], namespace)

    def _as_declared(self, word: str) -> str:
        """The word; an option in its own spelling, `--top-k` for `--top_k` or the reverse."""
        name, *rest = word.split("=", 1)
        names = {known.replace("_", "-"): known for known in self._option_string_actions}
        is_option = name.startswith("--") and name not in self._option_string_actions
        return "=".join([names.get(name.replace("_", "-"), name) if is_option else name, *rest])

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}: see {self.prog} --help")
