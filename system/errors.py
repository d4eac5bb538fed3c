"""Every error that a user can meet, and the exit code that a command ends with.

A message says what happened, which value or path it is about, and what to do.
"""


class UserError(Exception):
    """A foreseeable fault: a command ends with one line on stderr and `exit_code`."""

    exit_code: int


# ---------------------------------------------------------------- 2: config or usage


class ConfigError(UserError, ValueError):
    """All that is wrong with a config or a command line, in one message."""

    exit_code = 2


class DeviceError(UserError, ValueError):
    """The wanted device does not exist."""

    exit_code = 2


class SamplingError(UserError, ValueError):
    """A sampling setting that means nothing."""

    exit_code = 2


class ExportError(UserError, ValueError):
    """A model that cannot be exported, or not to there."""

    exit_code = 2


class FolderInUseError(UserError, RuntimeError):
    """Another process trains in this folder."""

    exit_code = 2


# ---------------------------------------------------------------- 3: the text


class DataError(UserError, ValueError):
    """The text cannot be trained on."""

    exit_code = 3


class VocabularyError(UserError, ValueError):
    """The byte-pair table is missing or damaged."""

    exit_code = 3


# ---------------------------------------------------------------- 4: checkpoints and weights


class CheckpointError(UserError, ValueError):
    """A file that is no intact checkpoint of this project."""

    exit_code = 4


class WeightsError(UserError, ValueError):
    """Weights that are not those of this model, or of no GPT-2."""

    exit_code = 4


# ---------------------------------------------------------------- 5: the download


class DownloadError(UserError, RuntimeError):
    """A file cannot be had, or cannot be read."""

    exit_code = 5


class ContentError(UserError, ValueError):
    """An official checkpoint that is whole, but not the one it should be."""

    exit_code = 5


# ---------------------------------------------------------------- 6: disk or permission


class OutputError(UserError, OSError):
    """A folder or a file that cannot be written; so ends any other OSError too."""

    exit_code = 6


# ---------------------------------------------------------------- 7: numbers that are not finite


class NonFiniteError(UserError, ArithmeticError):
    """A loss, a gradient or logits that are not finite."""

    exit_code = 7


class BrokenStateError(UserError, ArithmeticError):
    """A state that must not reach a file: not all of its numbers are finite."""

    exit_code = 7


# ---------------------------------------------------------------- 8: memory


class OutOfRoomError(UserError, MemoryError):
    """A model that this machine cannot train; so ends any other lack of memory too."""

    exit_code = 8


# ---------------------------------------------------------------- 9: several processes


class ProcessesError(UserError, RuntimeError):
    """Several processes that cannot work together."""

    exit_code = 9
