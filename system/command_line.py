"""How the commands read their options."""

import argparse
from typing import Any, NoReturn

from system.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser of whole names, whose errors are ConfigErrors."""

    def __init__(self, **form: Any) -> None:
        super().__init__(allow_abbrev=False, **form)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}: see {self.prog} --help")
