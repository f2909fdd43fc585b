"""The exceptions that commands print as a sentence instead of a traceback."""


class UserError(ValueError):
    """What a person can mend: one sentence with the value, the rule and the mend.

    Commands print it to standard error and exit with 2.
    """


class RunError(RuntimeError):
    """What ends a run that had begun, such as a full disk: one sentence; commands exit with 1."""
