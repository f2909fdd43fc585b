"""The one exception that the commands of data_prep print as a sentence instead of a traceback."""


class BuildError(ValueError):
    """What a person can mend: one sentence with the value, the rule and the mend.

    Commands print it to standard error and exit with 2.
    """
