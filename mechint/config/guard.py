"""Checks of a configuration before anything is written, which Hydra makes late or never."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, ListConfig, OmegaConf

from mechint.config.checking import check, check_keys, parts
from mechint.config.errors import SEVERAL_OPTIONS, USER_ERRORS, fail, in_user_words, one_option
from mechint.config.jobs import one_at_a_time, swept
from mechint.errors import UserError


class Guard(Callback):
    """Refuses a wrong configuration of a run, or of any job of a sweep, with one line and exit code 2."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Check the only job."""
        or_leave(check_config, config)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Check every value that any job will have."""
        or_leave(_check_jobs, config)


def or_leave(step: Callable[[DictConfig], Any], config: DictConfig) -> Any:
    """Do something in a callback; Hydra turns its exceptions into warnings, so an error leaves the program at once."""
    try:
        return step(config)
    except Exception as error:
        told = in_user_words(error)
        if isinstance(told, USER_ERRORS):
            fail(told)
        traceback.print_exc()
        raise SystemExit(1) from None


def check_config(config: DictConfig) -> None:
    """Check what can be known before a job begins. Raises UserError."""
    if config.hydra.job.chdir:
        raise UserError(
            "hydra.job.chdir=true is not supported: relative paths would mean other files; leave it out, "
            "every file goes to the output directory anyway"
        )
    HydraConfig.instance().set_config(config)  # for interpolations of ${hydra:...}
    check_keys(config)
    for group in parts(config):
        # Hydra does not count a list of options among the choices.
        if group not in config.hydra.runtime.choices and group not in SEVERAL_OPTIONS and _is_group(group):
            raise one_option(group)
    for key in config:
        if key != "hydra" and not OmegaConf.is_missing(config, key):
            check(config[key], str(key))
    if "target_sparsity" in config:
        from mechint.analysis.targets import parse_targets  # here: torch takes seconds

        target = config.target_sparsity
        parse_targets(OmegaConf.to_container(target) if isinstance(target, ListConfig) else target)


def _is_group(name: str) -> bool:
    return bool(GlobalHydra.instance().config_loader().get_group_options(name))


def _check_jobs(config: DictConfig) -> None:
    values = swept(config.hydra)
    if values is None:
        check_config(config)
        return
    loader = GlobalHydra.instance().config_loader()
    for job in one_at_a_time(values):
        check_config(loader.load_sweep_config(config, job))
