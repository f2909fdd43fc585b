"""The one exception that commands print as a sentence instead of a traceback."""


class UserError(ValueError):
    """What a person can mend: one sentence with the value, the rule and the mend.

    Commands print it to standard error and exit with 2.
    """
