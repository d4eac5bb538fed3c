"""How the commands read their options."""

import argparse
from typing import NoReturn

from system.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are ConfigErrors."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}: see {self.prog} --help")
