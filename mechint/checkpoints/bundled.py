"""The small models that ship with the package: Hugging Face directories under `bundled/`."""

from pathlib import Path

from mechint.errors import UserError

_ROOT = Path(__file__).parent / "bundled"


def bundled_names() -> list[str]:
    """Names that `bundled:NAME` accepts, sorted."""
    return sorted(config.parent.name for config in _ROOT.glob("*/config.json"))


def bundled_directory(name: str) -> Path:
    """The directory of a bundled model.

    Raises `UserError` for a name that is not bundled.
    """
    if name not in bundled_names():
        choices = ", ".join(f"bundled:{choice}" for choice in bundled_names()) or "none in this installation"
        raise UserError(f"there is no bundled model {name!r}; bundled models: {choices}")
    return _ROOT / name
