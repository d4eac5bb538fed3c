"""How the commands read their options."""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from system.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser of whole names, whose errors are ConfigErrors."""

    def __init__(self, **form: Any) -> None:
        super().__init__(allow_abbrev=False, **form)

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As in argparse, which before Python 3.13 reads `--name=--` as an empty list."""
        words = sys.argv[1:] if args is None else args
        if empty := next((word for word in words if re.fullmatch(r"--[\w-]+=--", word)), None):
            self.error(f"{empty}: -- is no value")
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}: see {self.prog} --help")
