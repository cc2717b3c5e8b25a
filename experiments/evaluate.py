"""Measure the mask of a finished run on other data.

python experiments/evaluate.py run=outputs/runs/NAME/TIME dataset=text dataset.path=book.txt
python experiments/evaluate.py run=DIR dataset=fineweb_edu dataset.evaluation_tokens=200000
python experiments/evaluate.py run=DIR                                # on the run's own data, again
python experiments/evaluate.py run=DIR dataset=text dataset.path=book.txt output_dir=on_book
"""

import logging
from pathlib import Path

import hydra
from omegaconf import DictConfig

from mechint import config as configuration
from mechint.errors import UserError

log = logging.getLogger(__name__)


@hydra.main(version_base=configuration.VERSION_BASE, config_path="../conf", config_name="evaluate")
@configuration.entry
def main(config: DictConfig) -> None:
    """Compose, measure, print the table."""
    if config.run is None:
        raise UserError("give run=DIR, the output directory of a finished run")

    from mechint.api import evaluate
    from mechint.reporting.closing import evaluation_table
    from mechint.runtime.files import write_json

    found = evaluate(
        config.run,
        None if config.dataset is None else configuration.build(config.dataset),
        device=config.device,
        dtype=config.dtype,
        batch_size=config.batch_size,
    )
    print(evaluation_table(found.dataset, found.metrics, found.faithfulness))
    if config.output_dir is not None:
        path = Path(config.output_dir) / "evaluation.json"
        write_json(path, {"run": config.run, **found.model_dump(mode="json")})
        log.info("%s", path)


if __name__ == "__main__":
    configuration.launch(main)
