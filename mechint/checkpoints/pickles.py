"""Reading PyTorch pickles without running anything that is in them."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mechint.checkpoints.quiet import quiet
from mechint.errors import UserError
from mechint.runtime.pickles import PickleRefusedError, load_plain

# What torch and the system say of files that end too early.
CUT_SHORT = re.compile(
    r"miniz|PytorchStreamReader|central directory|unexpected EOF|ran out of|Invalid argument|truncated",
    re.IGNORECASE,
)


def read_pickle(path: Path) -> Mapping[str, Any]:
    """A checkpoint dictionary: tensors, numbers, strings, lists and dictionaries, on the CPU.

    Tensors may be memory-mapped, so an optimizer state that nobody asks for is never read from the disk.
    Raises `UserError` for a damaged file, and for one whose objects would need code to run
    (`torch.load(weights_only=True)` refuses those).
    """
    refuse_placeholder(path)
    try:
        with quiet():
            loaded = load_plain(path, mmap=zipfile.is_zipfile(path))
    except PickleRefusedError as error:
        if error.needed:
            raise UserError(_needs_code(path, error.needed)) from error
        cut = CUT_SHORT.search(str(error))
        reason = "it is cut short or damaged" if cut else str(error)
        raise UserError(
            f"{path} is not a PyTorch checkpoint, or a damaged one ({reason}); copy or save it again"
        ) from error
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path} holds a {type(loaded).__name__}, not a state dict; save model.state_dict()")
    return loaded


def refuse_placeholder(path: Path) -> None:
    """Raises `UserError` for files that only stand for content: empty ones and git-lfs pointers."""
    try:
        with path.open("rb") as stream:
            head = stream.read(64)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if not head:
        raise UserError(f"{path} is empty; copy or save it again")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a git-lfs pointer, not the weights; run `git lfs pull` in its repository")


def _needs_code(path: Path, needed: str) -> str:
    return (
        f"{path} holds more than weights ({needed}) and would have to run code to load, which is refused; "
        f"if you trust it, re-save the state dict: c = torch.load('{path.name}', weights_only=False); "
        "torch.save({'model': c['model'], 'model_args': {'n_head': NUMBER_OF_HEADS}}, 'clean.pt')"
    )
