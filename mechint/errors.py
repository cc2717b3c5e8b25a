"""Errors that a user can cause and mend."""

import re


class UserError(ValueError):
    """Bad input: one line that says what is wrong and what to do.

    The entry scripts print the message without a traceback and exit with code 2.
    """


def without_controls(text: str) -> str:
    """A text in one line that does nothing to a terminal: no colours, line breaks or other control characters."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x1f\x7f-\x9f]", " ", text).split())
