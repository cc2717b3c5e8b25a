"""Which of many tests that are alike are run in a hurry."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def rest_slow(values: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """Values of a parameter, or tuples for several: those outside of `quick` are left out with the slow tests."""
    return [
        value
        if value in quick
        else pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow)
        for value in values
    ]
