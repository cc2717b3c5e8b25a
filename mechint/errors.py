"""Errors that a user can cause and mend."""


class UserError(ValueError):
    """Bad input: one line that says what is wrong and what to do.

    The entry scripts print the message without a traceback and exit with code 2.
    """
