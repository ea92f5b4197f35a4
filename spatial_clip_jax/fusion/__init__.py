"""Several views of one picture fused into one dense map, and exact pooling of boxes."""

from spatial_clip_jax.fusion.core import Trunk, fuse
from spatial_clip_jax.fusion.plan import Plan, Scale, make_plan
from spatial_clip_jax.fusion.roi import roi_align

__all__ = ["Plan", "Scale", "Trunk", "fuse", "make_plan", "roi_align"]
