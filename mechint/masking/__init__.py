"""Where a mask acts, and what it is made of."""

from mechint.masking.ablation import ZERO, Ablation, MeanAblation, ZeroAblation
from mechint.masking.masked_model import MaskedModel
from mechint.masking.masks import LayerMask, MaskSet, masks_by_layer
from mechint.masking.optimal_ablation import OptimalAblation
from mechint.masking.prompt_ablations import CounterfactualAblation, MeanPerPositionAblation
from mechint.masking.space import ChannelSpace, LayerShape
from mechint.masking.units import Pools, Units, make_pools, make_units

__all__ = [
    "ZERO",
    "Ablation",
    "ChannelSpace",
    "CounterfactualAblation",
    "LayerMask",
    "LayerShape",
    "MaskSet",
    "MaskedModel",
    "MeanAblation",
    "MeanPerPositionAblation",
    "OptimalAblation",
    "Pools",
    "Units",
    "ZeroAblation",
    "make_pools",
    "make_units",
    "masks_by_layer",
]
