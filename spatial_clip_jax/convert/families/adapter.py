"""Names of a spatial adapter's weights beside a CLIP: those of its tower's blocks in Hugging Face's classes."""

from spatial_clip_jax.convert.families.hugging_face import block
from spatial_clip_jax.convert.tables import Naming, linear, norm

ADAPTER = Naming(
    "spatial adapter",
    (
        *block("blocks/{i}", "layers.{i}"),
        # Of towers that no class of transformers has.
        *norm("blocks/{i}/attention/norm", "layers.{i}.self_attn.norm"),
        *linear("blocks/{i}/mlp/{gud}", "layers.{i}.mlp.{gud}_proj"),
        *norm("blocks/{i}/mlp/norm", "layers.{i}.mlp.norm"),
        ("blocks/{i}/scale{k}", "layers.{i}.layer_scale{k}", "same"),
        *norm("post_norm", "post_layernorm"),
    ),
)
