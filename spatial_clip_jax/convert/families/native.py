"""Our own names, as they are: what `spatial-clip convert` writes, so that loading maps nothing."""

from spatial_clip_jax.convert.tables import Naming

NATIVE = Naming("native weights of spatial_clip_jax", (("{path}", "{path}", "same"),))
