"""Compare runs: what differs, and whether it is more than the spread between seeds.

python experiments/compare.py 'variants={Baseline: DIR0, KV-Tying: DIR1}' output_dir=comparison
python experiments/compare.py 'variants={A: DIR0, B: DIR1, C: DIR2}' baseline=B
python experiments/compare.py variants=names.yaml                # NAME: DIR, one a line; any name, even K=V^T
python experiments/compare.py tree=outputs/sweeps/DATE           # every run below it, as curves over sparsity
python experiments/compare.py 'circuits={ioi: DIR0, pronouns: DIR1}'    # what masks share and do on the others' tasks
python experiments/compare.py tree=outputs logger=wandb logger.project=masks
"""

import logging
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from mechint import config as configuration
from mechint.errors import UserError

log = logging.getLogger(__name__)


@hydra.main(version_base=configuration.VERSION_BASE, config_path="../conf", config_name="compare")
@configuration.entry
def main(config: DictConfig) -> None:
    """Compose, compare, say where to look."""
    where = configuration.output_directory() if configuration.is_sweep() else directory(config)
    if where.exists() and not where.is_dir():
        raise UserError(f"output_dir={where} is a file; name a directory")
    if sum(config[name] is not None for name in ("variants", "tree", "circuits")) != 1:
        raise UserError(
            "give one of 'variants={Baseline: DIR0, KV-Tying: DIR1}', tree=DIR and "
            "'circuits={ioi: DIR0, pronouns: DIR1}'"
        )

    from mechint.comparison.compare import read_comparison
    from mechint.comparison.findings import findings_text
    from mechint.comparison.job import Output, leave_circuits, leave_comparison, leave_study
    from mechint.comparison.runs import gates_in_words
    from mechint.comparison.study import read_study
    from mechint.comparison.study_report import count_in_words

    output = Output(
        directory=where,
        loggers=[configuration.build(sink) for sink in ((config.logger or {}).get("sinks") or {}).values()],
        config=configuration.plain_config(config),
        dpi=config.dpi,
    )
    if config.circuits is not None:
        from mechint.analysis.between import between, one_directory_each
        from mechint.comparison.circuits import circuits_lines

        named = one_directory_each(variants(config.circuits, "circuits"))
        found = between(named, config.device, config.dtype)
        figures = [configuration.build(figure) for figure in config.circuit_figures]
        written = leave_circuits(found, figures, output)
        for line in circuits_lines(found):
            log.info("%s", line)
    elif config.tree is None:
        comparison = read_comparison(variants(config.variants), config.baseline)
        figures = [configuration.build(figure) for figure in config.variant_figures]
        written = leave_comparison(comparison, figures, output)
        print(findings_text(comparison))
    else:
        study = read_study(config.tree)
        figures = [configuration.build(figure) for figure in config.tree_figures]
        written = leave_study(study, figures, output)
        log.info("%s", count_in_words(study))
        if study.has_gates:
            log.info("gates: %s", gates_in_words(study.runs))
        for flag in study.flags:
            log.warning("%s", flag)
    for path in written:
        log.info("%s", path)


def directory(config: DictConfig) -> Path:
    """Where the results of a single comparison go; it is made when there are some."""
    now = f"outputs/comparisons/{datetime.now():%Y-%m-%d_%H-%M-%S}"
    return Path(configuration.job_directory(config.output_dir, now))


def variants(given: Any, key: str = "variants") -> dict[str, Any]:
    """Names and directories, as given or from a YAML file; raises UserError where they are neither."""
    if isinstance(given, str):
        if not Path(given).is_file():
            raise UserError(
                f"{key}={given}: there is no such file; give {{NAME: DIR, NAME: DIR}} or a YAML file of "
                "that form"
            )
        try:
            given = OmegaConf.load(given)
        except Exception as error:  # whatever yaml and OmegaConf say of a damaged or hostile file
            raise UserError(f"{key}={given} is not a YAML file of the form NAME: DIR ({error})") from error
    plain = OmegaConf.to_container(given, resolve=False) if OmegaConf.is_config(given) else given
    if not isinstance(plain, dict):
        raise UserError(f"{key} must name directories: {{NAME: DIR, NAME: DIR}}")
    return {str(name): directories for name, directories in plain.items()}


if __name__ == "__main__":
    configuration.launch(main)
