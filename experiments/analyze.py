"""Learn which Key and Value channels a trained transformer needs.

python experiments/analyze.py                                    # bundled model and text, minutes on 2 cores
python experiments/analyze.py checkpoint=model.pt model.tokenizer=gpt2 dataset=text dataset.path=book.txt
python experiments/analyze.py -m sweep=checkpoints 'checkpoint_glob=ckpts/*' target_sparsity=0.5,0.9 output_dir=study
python experiments/analyze.py seeds=5                            # five runs, what they agree on, and tests of it
python experiments/analyze.py checkpoint=gpt2 dataset=fineweb_edu logger=wandb logger.project=masks
torchrun --nproc_per_node=2 experiments/analyze.py checkpoint=DIRECTORY    # one run on two devices
python experiments/analyze.py --cfg job                          # show every key
"""

import logging
import math

import hydra
from omegaconf import DictConfig

from mechint import config as configuration
from mechint.errors import UserError

log = logging.getLogger(__name__)


@hydra.main(version_base=configuration.VERSION_BASE, config_path="../conf", config_name="analyze")
@configuration.entry
def main(config: DictConfig) -> float:
    """Compose, analyse, say where to look; returns the masked model's KL, which a sweeper may minimise."""
    from mechint.analysis.attempt import RunOptions
    from mechint.analysis.preparation import SHARED, Preparation
    from mechint.reporting.certainty import agreement_lines
    from mechint.reporting.closing import summary_lines
    from mechint.runtime import distributed

    output_dir, sweep = configuration.output_directory(), configuration.is_sweep()
    analysis = configuration.build_analysis(config)
    if distributed.under_torchrun() and config.seeds > 1:
        raise UserError(
            "seeds share nothing, so give every device one: -m seed=0,1 and a launcher, not torchrun"
        )
    with distributed.processes() as first:
        options = RunOptions(
            group=configuration.sweep_name(),
            bar=False if sweep or not first else None,
            resume=config.resume,
            preparation=SHARED if sweep else Preparation(),
        )
        work = analysis if first else analysis.unseen()
        result = work.run(output_dir, configuration.plain_config(config), options)
    if not first:
        return math.nan
    for line in [*agreement_lines(result), *summary_lines(result, output_dir)]:
        log.info(line)
    kl = result.metrics.masked.kl
    return math.nan if kl is None else kl


if __name__ == "__main__":
    configuration.launch(main, several=True)
