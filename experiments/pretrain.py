"""Train a small model from scratch and save it as a checkpoint directory.

python experiments/pretrain.py                                   # the bundled baseline's recipe
python experiments/pretrain.py architecture=kv_tied              # the same with K = V
python experiments/pretrain.py architecture=llama steps=3000 dataset=text dataset.path=book.txt output_dir=my_llama
"""

import functools
import logging

import hydra
from omegaconf import DictConfig

from mechint import config as configuration

log = logging.getLogger(__name__)


@hydra.main(version_base=configuration.VERSION_BASE, config_path="../conf", config_name="pretrain")
@configuration.entry
def main(config: DictConfig) -> float:
    """Train, save, measure; returns the held-out loss."""
    from mechint.checkpoints.tokenizer import find_tokenizer
    from mechint.data.byte_tokenizer import byte_tokenizer
    from mechint.pretraining.job import pretrain
    from mechint.runtime.device import pick_device

    output_dir = configuration.output_directory()
    record = pretrain(
        architecture=configuration.build(config.architecture),
        make_dataset=functools.partial(configuration.build, config.dataset),
        pretrainer=configuration.build(config.pretrainer),
        tokenizer=byte_tokenizer() if config.tokenizer is None else find_tokenizer(config.tokenizer),
        tokenizer_name="bytes" if config.tokenizer is None else config.tokenizer,
        positions=config.positions,
        steps=config.steps,
        seed=config.seed,
        device=pick_device(config.device),
        output_dir=output_dir,
        recipe=configuration.plain_config(config),
    )
    held_out = record["held_out"]
    bits = f", {held_out['bits_per_byte']:.3f} bits per byte" if "bits_per_byte" in held_out else ""
    log.info("held-out loss %.3f nats per token%s; model in %s", held_out["loss"], bits, output_dir)
    return held_out["loss"]


if __name__ == "__main__":
    configuration.launch(main)
