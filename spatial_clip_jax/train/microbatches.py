"""A batch passes through towers in parts, one after another; what it becomes is joined again.

Losses see the whole batch, so they, and their gradients, are those of the large batch whatever they compare: the pass
alone is split, not the loss (as GradCache, Gao et al. 2021, arXiv 2101.06983, does for contrastive losses). Within
`jax.grad` the loop over parts sums their gradients.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from spatial_clip_jax.train.sharding import batch_parts


def in_parts(call: Callable[..., Array], parts: int, *batches: Shaped[Array, " b *_"]) -> Shaped[Array, " b *r"]:
    """`call` over `parts` equal parts of the batches' first axis, joined.

    Every part takes pictures of all devices, so that none idles. ValueError if the parts, or the devices of the mesh
    that is set, cannot share the batch equally.
    """
    if parts == 1:
        return call(*batches)
    count, devices = len(batches[0]), batch_parts(jax.sharding.get_abstract_mesh())
    if count % (parts * devices):
        raise ValueError(
            f"{count} pictures cannot be shared equally by compute.microbatches={parts} x {devices} devices "
            "(data x fsdp): change config.batch_size or config.compute.microbatches"
        )
    split = [jnp.moveaxis(batch.reshape(count // parts, parts, *batch.shape[1:]), 1, 0) for batch in batches]
    joined = jax.lax.map(lambda part: call(*part), tuple(split))
    return jnp.moveaxis(joined, 0, 1).reshape(count, *joined.shape[2:])
