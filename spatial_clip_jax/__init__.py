"""Gives a pretrained CLIP its spatial awareness back: boxes, masks, relations and heatmaps from text."""

from spatial_clip_jax.api import SpatialClip, load
from spatial_clip_jax.fusion.pixels import Upsampling
from spatial_clip_jax.fusion.pyramid import Pyramid

__all__ = ["Pyramid", "SpatialClip", "Upsampling", "load"]
