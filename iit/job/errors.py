"""Errors in words: what ends a command says what was wrong, not where in the code."""

from hydra.errors import HydraException, InstantiationException
from omegaconf.errors import OmegaConfBaseException

_FOR_USERS = (
    ValueError,
    OSError,
    ImportError,
    HydraException,
    OmegaConfBaseException,
)
"""Errors that say what a user can do; others are faults of the program."""


def error_text(error: BaseException) -> str:
    """An error for the terminal and for a job's record."""
    # Hydra wraps what a `_target_` raises.
    while isinstance(error, InstantiationException) and isinstance(error.__cause__, _FOR_USERS):
        error = error.__cause__
    # What is still wrapped was not meant for users.
    if isinstance(error, InstantiationException) or not isinstance(error, _FOR_USERS):
        return (
            f"{type(error).__name__}: {error}\nThe log in the run's folder has the traceback; "
            "HYDRA_FULL_ERROR=1 shows it here."
        )
    text = str(error)
    # Where a value does not fit its key, the cause says why.
    if isinstance(error.__cause__, OmegaConfBaseException):
        text += f"\n{error.__cause__}"
    # An error of the system, such as a full disk. Others of this kind say what to do.
    if isinstance(error, OSError) and error.errno is not None:
        text += (
            ". No finished result is lost. Remove the cause, and give the same command with the "
            "folder that was made (hydra.run.dir=, hydra.sweep.dir=): it goes on."
        )
    return text
