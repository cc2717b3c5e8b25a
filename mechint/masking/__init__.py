"""Where a mask acts, what it is made of, and its files."""

from mechint.masking.masked_model import MaskedModel
from mechint.masking.masks import LayerMask, MaskSet, load_masks, masks_by_layer, save_masks
from mechint.masking.space import ChannelSpace, LayerShape
from mechint.masking.units import Pools, Units, make_pools, make_units

__all__ = [
    "ChannelSpace",
    "LayerMask",
    "LayerShape",
    "MaskSet",
    "MaskedModel",
    "Pools",
    "Units",
    "load_masks",
    "make_pools",
    "make_units",
    "masks_by_layer",
    "save_masks",
]
