"""A run in TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechint.errors import UserError
from mechint.loggers.logger import Logger, RunInfo
from mechint.loggers.values import flatten, plain
from mechint.runtime.files import require_room

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorboardLogger(Logger):
    """Writes event files into `tensorboard/` in the output directory.

    Curves and the summary become scalars, figures images, the table and the configuration text. TensorBoard
    has no place for files, so the masks stay in the output directory alone.

    Raises UserError when the package is not installed.
    """

    name = "tensorboard"

    def __init__(self) -> None:
        if find_spec("tensorboard") is None:
            raise UserError("logger=tensorboard needs a package: pip install -e '.[tensorboard]'")
        self._writer: SummaryWriter | None = None
        self._last_step = 0

    def start(self, run: RunInfo) -> None:
        from torch.utils.tensorboard import SummaryWriter

        directory = run.output_dir / "tensorboard"
        require_room(directory)
        self._writer = SummaryWriter(directory)
        config = json.dumps(run.config, indent=2, default=str)
        self._writer.add_text("config", "    " + config.replace("\n", "\n    "))
        self._writer.flush()

    @property
    def writer(self) -> SummaryWriter:
        assert self._writer is not None, "a call before start()"
        return self._writer

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        for name, value in flatten(metrics).items():
            self.writer.add_scalar(name, value, step)
        self._last_step = step

    def summary(self, metrics: Mapping[str, Any]) -> None:
        for name, value in flatten(metrics).items():
            if isinstance(value, (int, float)):
                self.writer.add_scalar(f"summary/{name}", value, self._last_step)
            else:
                self.writer.add_text(f"summary/{name}", str(value), self._last_step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        lines = [columns, ["---"] * len(columns), *([_cell(value) for value in row] for row in rows)]
        self.writer.add_text(name, "\n".join(f"| {' | '.join(line)} |" for line in lines), self._last_step)

    def figures(self, paths: Sequence[Path]) -> None:
        import numpy as np
        from PIL import Image

        for path in paths:
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))  # [height, width, 3]
            self.writer.add_image(f"figures/{path.stem}", pixels, self._last_step, dataformats="HWC")

    def finish(self, succeeded: bool) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()


def _cell(value: Any) -> str:
    value = plain(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
