"""Measure what mechint itself does.

python experiments/benchmark.py what=speed                       # a mask step beside the plain model's: time and memory
python experiments/benchmark.py what=speed 'what.models=[llama_8b]' what.batch_size=2 what.sequence_length=1024
"""

import logging

import hydra
from omegaconf import DictConfig

from mechint import config as configuration

log = logging.getLogger(__name__)


@hydra.main(version_base=configuration.VERSION_BASE, config_path="../conf", config_name="benchmark")
@configuration.entry
def main(config: DictConfig) -> None:
    """Compose, measure, print the table."""
    output_dir = configuration.output_directory()
    benchmark = configuration.build(config.what)
    record = benchmark.run(output_dir, configuration.plain_config(config))
    print(benchmark.table(record))
    log.info("%s", output_dir)


if __name__ == "__main__":
    configuration.launch(main)
