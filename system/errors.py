"""Every error that a user can meet, and its exit code; signals end with 130 and 143.

A message says what happened, which value or path it is about, and what to do.
"""

from typing import Any


class UserError(Exception):
    """A foreseeable fault: a command ends with one line on stderr and the class's exit code."""

    exit_code: int

    def __init_subclass__(cls, *, exit_code: int, **more: Any) -> None:
        super().__init_subclass__(**more)
        cls.exit_code = exit_code


class ConfigError(UserError, ValueError, exit_code=2):
    """All that is wrong with a config or a command line, in one message."""


class SamplingError(UserError, ValueError, exit_code=2):
    """A sampling setting that means nothing."""


class ExportError(UserError, ValueError, exit_code=2):
    """A model that cannot be exported, or not to there."""


class FolderInUseError(UserError, RuntimeError, exit_code=2):
    """Another process trains in this folder."""


class DataError(UserError, ValueError, exit_code=3):
    """The text cannot be trained on."""


class VocabularyError(UserError, ValueError, exit_code=3):
    """The byte-pair table is missing or damaged."""


class CheckpointError(UserError, ValueError, exit_code=4):
    """A file that is no intact checkpoint of this project."""


class WeightsError(UserError, ValueError, exit_code=4):
    """Weights that are not those of this model, or of no GPT-2."""


class DownloadError(UserError, RuntimeError, exit_code=5):
    """A file cannot be had, or cannot be read."""


class OutputError(UserError, OSError, exit_code=6):
    """A folder or a file that cannot be written; so ends any other OSError too."""


class NonFiniteError(UserError, ArithmeticError, exit_code=7):
    """A loss, a gradient, logits or a state to save that are not finite."""


class OutOfRoomError(UserError, MemoryError, exit_code=8):
    """A model that this machine cannot train; so ends any other lack of memory too."""


class ProcessesError(UserError, RuntimeError, exit_code=9):
    """Several processes that cannot work together."""
