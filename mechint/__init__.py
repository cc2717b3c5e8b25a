"""Find the smallest set of attention Key and Value channels that keeps a trained transformer's behaviour.

analyze            learn and measure a mask for a checkpoint
load_run           a finished run from its directory; run.masked_model() is its model under the mask
compare_circuits   what the masks of several runs share, and what each does on the others' data
evaluate           what a run's mask does on other data
compare_variants   compare two or more variants of a model

    from mechint import analyze

    run = analyze("bundled:baseline", "results/baseline", target_sparsity=0.9)
    run.result.metrics.masked.kl
    run.channels_frame()
    with run.masked_model() as masked:
        masked.generate("The sequence")

On the command line: python experiments/analyze.py --help
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechint.api import analyze, compare_circuits, compare_variants, evaluate, load_run

__all__ = ["analyze", "compare_circuits", "compare_variants", "evaluate", "load_run"]


def __getattr__(name: str) -> Any:
    """The functions of `__all__`, imported when they are first asked for: torch takes seconds."""
    if name in __all__:
        from mechint import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What completion and `help` show."""
    return sorted([*globals(), *__all__])
