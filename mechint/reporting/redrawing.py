"""Making the figures and the report of runs again from their saved files, without model or data."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from mechint.errors import UserError, one_line
from mechint.imports.old_results import MASKS, is_old_run, read_old_run
from mechint.reporting import Visualizer
from mechint.results import RunFiles
from mechint.results.find import run_directories
from mechint.results.result import RESULT

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Redrawn:
    """What became of a tree: the files written for each run's directory, and why others were left out."""

    drawn: dict[Path, list[Path]]
    left_out: dict[Path, str]


def redraw_run(directory: Path, visualizer: Visualizer, output_dir: Path | None = None) -> list[Path]:
    """Draw one run again and return the paths, the report last.

    output_dir: where to; None: in place, except for results of the replaced tool, which go to
    DIRECTORY_redrawn so that the tool's own report stays. Raises UserError for runs without numbers and for
    places that hold another run.
    """
    old = is_old_run(directory)
    run = read_old_run(directory) if old else RunFiles.read(directory)
    target = output_dir or (beside(directory) if old else directory)
    _refuse_foreign(target, directory, old)
    try:
        target.mkdir(parents=True, exist_ok=True)
        return visualizer.draw(replace(run, directory=target))
    except OSError as error:
        raise UserError(
            f"cannot write figures into {target} ({one_line(error)}); choose a place with output_dir=DIR"
        ) from error
    except Exception as error:  # whatever a damaged or foreign file makes figures and report stumble over
        log.debug("%s", directory, exc_info=True)
        raise UserError(
            f"the files in {directory} cannot be drawn ({type(error).__name__}: {one_line(error)}); "
            "they are damaged or of another program: run the analysis again"
        ) from error


def redraw_tree(root: Path, visualizer: Visualizer, output_dir: Path | None = None) -> Redrawn:
    """Draw every finished run below `root` again; runs that cannot be drawn are listed, not fatal.

    output_dir: a directory that repeats the tree's structure; None: in place, except for results of the
    replaced tool, which go into ROOT_redrawn. Raises UserError where there is nothing to draw.
    """
    drawn: dict[Path, list[Path]] = {}
    left_out: dict[Path, str] = {}
    for directory in run_directories(root, (RESULT, MASKS)):
        base = output_dir or (beside(root) if is_old_run(directory) else root)
        try:
            drawn[directory] = redraw_run(directory, visualizer, base / directory.relative_to(root))
        except UserError as error:
            left_out[directory] = str(error)
        except Exception as error:  # a damaged file must not keep the other runs from being drawn
            log.debug("%s", directory, exc_info=True)
            left_out[directory] = (
                f"the files in {directory} cannot be drawn ({type(error).__name__}: {one_line(error)})"
            )
        else:
            log.info("drew %s", directory)
    if not drawn:
        empty = f"no {RESULT} and no {MASKS}; give the output directory of a sweep"
        raise UserError(f"nothing to draw below {root}: {'; '.join(left_out.values()) or empty}")
    return Redrawn(drawn, left_out)


def beside(directory: Path) -> Path:
    """Where to draw what must not be drawn in place: /a/b becomes /a/b_redrawn."""
    directory = directory.resolve()
    return directory.with_name(f"{directory.name}_redrawn")


def _refuse_foreign(target: Path, source: Path, old: bool) -> None:
    """Raise UserError where drawing into `target` would overwrite another run's report, or the replaced tool's own."""
    own = target.resolve() == source.resolve()
    if own and old:
        raise UserError(
            f"{source} holds the replaced tool's own report, which would be overwritten; choose another output_dir"
        )
    if not own and any((target / name).exists() for name in (RESULT, MASKS)):
        raise UserError(
            f"{target} holds another run, whose report would be overwritten; choose another output_dir"
        )
