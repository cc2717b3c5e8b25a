"""What a run leaves in its directory: its result, masks, and who may write there."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechint.results.mask_files import load_masks, save_masks
    from mechint.results.result import Result
    from mechint.results.run_files import RunFiles

__all__ = ["Result", "RunFiles", "load_masks", "save_masks"]


def __getattr__(name: str) -> Any:
    """What `__all__` names, imported when it is first asked for: masks need torch, which takes seconds."""
    if name in ("load_masks", "save_masks"):
        from mechint.results import mask_files

        return getattr(mask_files, name)
    if name == "RunFiles":
        from mechint.results.run_files import RunFiles

        return RunFiles
    if name == "Result":
        from mechint.results.result import Result

        return Result
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
