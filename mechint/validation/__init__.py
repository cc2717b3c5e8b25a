"""Models in which the Key and Value channels that matter are known, to test mask methods on."""

from typing import Any

from mechint.errors import UserError
from mechint.masking.ablation import ZERO, Ablation
from mechint.validation.induction import Induction
from mechint.validation.planted import Certificate, Planted, Recovery
from mechint.validation.variants import Graded, Grouped, Permuted, Rope, Rotated

__all__ = [
    "Certificate",
    "Graded",
    "Grouped",
    "Induction",
    "Permuted",
    "Planted",
    "Recovery",
    "Rope",
    "Rotated",
    "plant",
]


def plant(name: str, seed: int = 0, ablation: Ablation = ZERO, **sizes: Any) -> Planted:
    """A planted model with certified truth; name: induction, grouped, rope, graded, rotated or permuted.

    sizes: keyword arguments of its class. Raises UserError for an unknown name, or where the truth is not certain.
    """
    classes = {cls.name: cls for cls in (Induction, Grouped, Rope, Graded, Rotated, Permuted)}
    if name not in classes:
        raise UserError(f"planted={name} is not known; use one of {', '.join(classes)}")
    return classes[name](**sizes).plant(seed, ablation)
