"""Find the smallest set of attention Key and Value channels that keeps a trained transformer's behaviour."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechint.api import analyze, compare_variants

__all__ = ["analyze", "compare_variants"]


def __getattr__(name: str) -> Any:
    """The functions of `__all__`, imported when they are first asked for: torch takes seconds."""
    if name in __all__:
        from mechint import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
