"""CLIP towers, dense read-outs and the spatial adapter; the only place that imports flax.nnx."""
