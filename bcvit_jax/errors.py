"""The exceptions that commands print as a sentence instead of a traceback."""

import sys


class UserError(ValueError):
    """What a person can mend: one sentence with the value, the rule and the mend.

    Commands print it to standard error and exit with 2.
    """


class RunError(RuntimeError):
    """What ends a run that had begun, such as a full disk: one sentence; commands exit with 1."""


def fail(error: Exception) -> int:
    """Print what went wrong as one line; returns the exit status, 2 for a UserError, else 1."""
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    return 2 if isinstance(error, UserError) else 1
