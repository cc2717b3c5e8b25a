"""Keeping other libraries' chatter off the terminal."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, log lines or warnings from transformers and huggingface_hub inside the block."""
    hub_logger = logging.getLogger("huggingface_hub")
    levels = transformers_logging.get_verbosity(), hub_logger.level
    had_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    hub_logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(levels[0])
        hub_logger.setLevel(levels[1])
        if had_bars:
            transformers_logging.enable_progress_bar()
