"""Losses: pure functions of dense maps, boxes and masks, giving a scalar and its named parts."""

from spatial_clip_jax.objectives.fusion_distillation import fusion_distillation
from spatial_clip_jax.objectives.region_alignment import region_alignment
from spatial_clip_jax.objectives.spatial_correlation import spatial_correlation

__all__ = ["fusion_distillation", "region_alignment", "spatial_correlation"]
