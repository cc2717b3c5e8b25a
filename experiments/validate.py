"""Hold a mask method against models whose Key and Value channels are known.

python experiments/validate.py                                   # the default method on the base model, 10 seeds
python experiments/validate.py mask=hard_concrete planted=all seeds=3
python experiments/validate.py mask=topk 'planted=[induction,rope]' steps=300 ablation=mean
python experiments/validate.py -m mask=topk,hard_concrete,annealed_sigmoid seeds=3
"""

import functools
import logging

import hydra
from omegaconf import DictConfig

from mechint import config as configuration

log = logging.getLogger(__name__)


@hydra.main(version_base=configuration.VERSION_BASE, config_path="../conf", config_name="validate")
@configuration.entry
def main(config: DictConfig) -> float:
    """Compose, validate, print the table; returns the mean KL, which a sweeper may minimise."""
    from mechint.validation.validation import TABLE, Validation

    output_dir = configuration.output_directory()
    validation = Validation(
        models={str(name): configuration.build(node) for name, node in config.planted.items()},
        make_recipe=functools.partial(configuration.build_recipe, config),
        trainer=configuration.build(config.trainer),
        seed=config.seed,
        seeds=config.seeds,
    )
    record = validation.run(output_dir, configuration.plain_config(config))
    print((output_dir / TABLE).read_text(encoding="utf-8"))
    log.info("%s", output_dir)
    models = record["models"].values()
    return sum(model["summary"]["kl"] for model in models) / len(models)


if __name__ == "__main__":
    configuration.launch(main)
