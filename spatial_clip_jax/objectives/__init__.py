"""Losses: pure functions of dense maps, boxes and masks, giving a scalar and its named parts."""

from spatial_clip_jax.objectives.fusion_distillation import fusion_distillation
from spatial_clip_jax.objectives.refinement import refinement
from spatial_clip_jax.objectives.region_alignment import region_alignment
from spatial_clip_jax.objectives.region_text import region_text
from spatial_clip_jax.objectives.registers import TeacherTokens, registers
from spatial_clip_jax.objectives.spatial_correlation import spatial_correlation

__all__ = [
    "TeacherTokens",
    "fusion_distillation",
    "refinement",
    "region_alignment",
    "region_text",
    "registers",
    "spatial_correlation",
]
