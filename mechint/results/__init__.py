"""What a run leaves in its directory: its result, masks, and who may write there."""

from mechint.results.mask_files import load_masks, save_masks
from mechint.results.run_files import RunFiles

__all__ = ["RunFiles", "load_masks", "save_masks"]
