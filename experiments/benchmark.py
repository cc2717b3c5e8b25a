"""Measure mask methods against each other, and mechint itself.

python experiments/benchmark.py                                  # quality at equal passes: hours for all methods
python experiments/benchmark.py 'what.methods=[topk,fisher]' 'what.sparsities=[0.9]' 'what.seeds=[0]' what.passes=100
python experiments/benchmark.py 'what.models=["DIRECTORY dataset=text dataset.path=book.txt"]' output_dir=benchmark
python experiments/benchmark.py 'what.methods=[topk,{short: "topk mask.finishing_trials=0"}]' output_dir=benchmark
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
    """Compose, measure, print the table; exit code 1 where something had to be left out."""
    logging.getLogger("mechint.loggers.progress").setLevel(logging.WARNING)  # a line per run is enough
    output_dir = configuration.output_directory()
    benchmark = configuration.build(config.what)
    record = benchmark.run(output_dir, configuration.plain_config(config))
    print(benchmark.table(record))
    log.info("%s", output_dir)
    if record.get("failed"):
        raise SystemExit(1)


if __name__ == "__main__":
    configuration.launch(main)
