"""What processes that a command starts have in common."""

from spatial_clip_jax.data.children import end_with_parent

__all__ = ["end_with_parent"]
