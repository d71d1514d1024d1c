"""Errors in words: what ends a command says what was wrong, not where in the code."""

from hydra.errors import HydraException, InstantiationException
from omegaconf.errors import OmegaConfBaseException

_FOR_USERS = (ValueError, OSError, ImportError, HydraException, OmegaConfBaseException)
"""Errors that say what a user can do; others are faults of the program."""


def cause(error: BaseException) -> BaseException:
    """The error that Hydra has wrapped, where it is one for users."""
    while isinstance(error, InstantiationException) and isinstance(error.__cause__, _FOR_USERS):
        error = error.__cause__
    return error


def error_text(error: BaseException) -> str:
    """An error for the terminal and for a job's record."""
    error = cause(error)
    # What is still wrapped was not meant for users.
    if isinstance(error, InstantiationException) or not isinstance(error, _FOR_USERS):
        return "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
    text = str(error)
    # Such as: the value of an override is of another type.
    if isinstance(error.__cause__, OmegaConfBaseException):
        text += f"\n{error.__cause__}"
    # An error of the system, such as a full disk. Others of this kind say what to do.
    if isinstance(error, OSError) and error.errno is not None:
        text += (
            ". No finished result is lost. Remove the cause, and give the same command with the "
            "folder that was made (hydra.run.dir=, hydra.sweep.dir=): it goes on."
        )
    return text
