"""Gives a pretrained CLIP its spatial awareness back: boxes, masks, relations and heatmaps from text."""

from spatial_clip_jax.api import SpatialClip, load

__all__ = ["SpatialClip", "load"]
