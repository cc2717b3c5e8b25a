"""How sure a mask is: the same method from several seeds, what their masks agree on, and tests of that.

`study.SeedStudy` is the job; it is not imported here, so that a report can be drawn without model or data.
"""

from mechint.stability.settings import Stability

__all__ = ["Stability"]
