"""Errors that a user can cause and fix."""

import re


class UserError(ValueError):
    """Bad input: one line that says what is wrong and what to do.

    The entry scripts print the message without a traceback and exit with code 2.
    """


def one_line(value: object, width: int | None = None) -> str:
    """A text, or an error's message, in one line that does nothing to a terminal: no colours, line breaks or other
    control characters.

    width: the longest that it may be. An error without a message is told by its class.
    """
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", " ", str(value))
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if isinstance(value, BaseException):
        line = line.rstrip(".") or type(value).__name__
    return line if width is None or len(line) <= width else f"{line[: width - 4].rstrip()} ..."
