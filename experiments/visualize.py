"""Make every figure and report of finished runs again from their saved files, without model or data.

python experiments/visualize.py run=outputs/runs/NAME/TIME
python experiments/visualize.py tree=outputs/sweeps/DATE              # every finished run below it
python experiments/visualize.py run=DIR output_dir=figures visualizer.dpi=300
python experiments/visualize.py run=outputs serve=true                # every run below it in the browser, with progress
"""

import logging
from pathlib import Path

import hydra
from omegaconf import DictConfig

from mechint import config as configuration
from mechint.errors import UserError

log = logging.getLogger(__name__)


@hydra.main(version_base=configuration.VERSION_BASE, config_path="../conf", config_name="visualize")
@configuration.entry
def main(config: DictConfig) -> None:
    """Compose, draw, say where to look."""
    if (config.run is None) == (config.tree is None):
        raise UserError("give either run=DIR, a run's output directory, or tree=DIR, a directory of runs")

    from mechint.reporting.redrawing import redraw_run, redraw_tree

    if config.serve:
        from mechint.reporting.web.server import serve

        serve(Path(config.tree if config.run is None else config.run), config.port)
        return
    visualizer = configuration.build(config.visualizer)
    output_dir = None if config.output_dir is None else Path(config.output_dir)
    if config.run is not None:
        for path in redraw_run(Path(config.run), visualizer, output_dir):
            log.info("%s", path)
        return
    redrawn = redraw_tree(Path(config.tree), visualizer, output_dir)
    for reason in redrawn.left_out.values():
        log.warning("left out: %s", reason)
    log.info("drew %d runs, left out %d", len(redrawn.drawn), len(redrawn.left_out))


if __name__ == "__main__":
    configuration.launch(main)
