"""The fusion of a bench config as shapes, for devices that need not be here."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from spatial_clip_jax.fusion.encoders import abstract_towers, slid_maps
from spatial_clip_jax.fusion.layout import Views, bucket_of, lay_out, layout_of
from spatial_clip_jax.fusion.pyramid import Pyramid
from spatial_clip_jax.models.compute import Compute
from spatial_clip_jax.models.spec import ClipSpec
from spatial_clip_jax.train.placement import placed
from spatial_clip_jax.train.sections import read_section


def fusion_traced(config: ConfigDict, spec: ClipSpec, mesh: Mesh) -> jax.stages.Traced:
    """The program that fuses `config.chip.pictures` a device, of config.side pixels, traced for the mesh.

    ValueError for numbers below 1.
    """
    chip, pyramid, devices = config.chip, read_section(Pyramid, config.pyramid, "pyramid"), mesh.shape["data"]
    if min(chip.pictures, chip.windows_at_once) < 1:
        raise ValueError(f"config.chip must be numbers of at least 1, got {chip.to_dict()}")
    bucket = bucket_of((config.side, config.side))
    layout = layout_of(bucket, chip.pictures, chip.windows_at_once, pyramid, spec.vision)
    one = lay_out([], layout, pyramid, spec.vision)
    split, whole = (NamedSharding(mesh, place) for place in (jax.P("data"), jax.P()))
    views = Views(*(_struct((devices * len(leaf), *leaf.shape[1:]), leaf.dtype, split) for leaf in one))
    towers, params = abstract_towers(spec, Compute(config.dtype))
    params = placed(params, jax.tree.map(lambda _: whole, params))
    shares = _struct((len(pyramid.scales),), jnp.float32, whole)
    with jax.set_mesh(mesh):
        return slid_maps.trace(towers, params, views, shares, layout, pyramid, "pictures")


def _struct(shape: tuple[int, ...], dtype: object, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)  # type: ignore[arg-type]
