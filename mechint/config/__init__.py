"""Everything that knows about Hydra and OmegaConf: schemas, resolvers, building objects, running jobs.

The rest of the package takes plain typed values and works without Hydra.
"""

from mechint.config.building import build, build_analysis, build_recipe, compose_analysis, plain_config
from mechint.config.checking import check
from mechint.config.errors import fail
from mechint.config.guard import Guard
from mechint.config.jobs import choice, is_sweep, output_directory, sweep_name
from mechint.config.launching import launch
from mechint.config.naming import files, job_directory, slug
from mechint.config.schema import VERSION_BASE, AnalyzeSchema, PretrainSchema, register
from mechint.config.tracking import JobTracker, entry

__all__ = [
    "VERSION_BASE",
    "AnalyzeSchema",
    "Guard",
    "JobTracker",
    "PretrainSchema",
    "build",
    "build_analysis",
    "build_recipe",
    "check",
    "choice",
    "compose_analysis",
    "entry",
    "fail",
    "files",
    "is_sweep",
    "job_directory",
    "launch",
    "output_directory",
    "plain_config",
    "register",
    "slug",
    "sweep_name",
]

register()  # the processes of parallel launchers import this package, and nothing else of it runs in them first
