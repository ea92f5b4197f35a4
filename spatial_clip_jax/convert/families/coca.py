"""open_clip's CoCa: names of the weights of its two encoders, `open_clip_config.json` to our specs and back.

The decoder of captions, which neither encoder needs, is passed over.
"""

from spatial_clip_jax.convert.families import open_clip
from spatial_clip_jax.convert.families.hugging_face import Json
from spatial_clip_jax.convert.families.open_clip import BUFFERS, CUSTOM_TEXT_TABLE, SCALE, Layout
from spatial_clip_jax.convert.tables import Naming, Table, linear, norm
from spatial_clip_jax.models.spec import ClipSpec

POOL_QUERIES, POOL_HEADS = 256, 8
PAD = 0

_VISION = tuple(rule for rule in open_clip.VISION_TABLE if not rule[0].startswith("vision/post_norm"))
_POOL: Table = (
    ("vision/pool/queries", "visual.attn_pool.query", "same"),
    *norm("vision/pool/query_norm", "visual.attn_pool.ln_q"),
    *norm("vision/pool/token_norm", "visual.attn_pool.ln_k"),
    ("vision/pool/attention/{qkv}/bias", "visual.attn_pool.attn.in_proj_bias", "same"),
    *linear("vision/pool/attention/out", "visual.attn_pool.attn.out_proj"),
    *norm("vision/pool/norm", "visual.ln_post"),
)
# torch.nn.MultiheadAttention packs its kernels where queries and tokens are equally wide.
_KERNELS: Table = (("vision/pool/attention/{qkv}/kernel", "visual.attn_pool.attn.{qkv}_proj_weight", "linear"),)
_PACKED_KERNELS: Table = (("vision/pool/attention/{qkv}/kernel", "visual.attn_pool.attn.in_proj_weight", "linear"),)
_TEXT: Table = (*CUSTOM_TEXT_TABLE, ("text/class_embedding", "text.cls_emb", "same"))
_DECODER = r"text_decoder\..*"

COCA = Naming("CoCa of open_clip", (*SCALE, *_VISION, *_POOL, *_KERNELS, *_TEXT), f"{BUFFERS}|{_DECODER}")
PACKED = Naming("CoCa of open_clip (packed)", (*SCALE, *_VISION, *_POOL, *_PACKED_KERNELS, *_TEXT), COCA.ignored)

READ = {
    "model_cfg": open_clip.READ["model_cfg"] | {"multimodal_cfg"},
    "vision_cfg": open_clip.READ["vision_cfg"] | {"attn_pooler_heads", "attn_pooler_queries", "output_tokens"},
    "text_cfg": open_clip.READ["text_cfg"] | {"output_tokens"},
}
SAME_AS_OURS: dict[str, Json] = {
    "model_cfg": open_clip.SAME_AS_OURS["model_cfg"],
    "vision_cfg": {**open_clip.SAME_AS_OURS["vision_cfg"], "attentional_pool": True},
    "text_cfg": {**open_clip.SAME_AS_OURS["text_cfg"], "embed_cls": True, "correct_cls_mask": False},
}


def _read(config: Json) -> ClipSpec:
    """Spec of open_clip's CoCa; ValueError for one that pools, or reads its text, in another way."""
    model, vision, text = open_clip.sections(config)
    text = {"embed_cls": False, **text}
    open_clip.refuse_others({"model_cfg": model, "vision_cfg": vision, "text_cfg": text}, READ, SAME_AS_OURS)
    activation = open_clip.activation_of(model)
    tower = open_clip.vision_spec(
        vision,
        config.get("preprocess_cfg", {}),
        activation,
        post_norm=False,
        pool="queries",
        pool_heads=vision.get("attn_pooler_heads", POOL_HEADS),
        pool_queries=vision.get("attn_pooler_queries", POOL_QUERIES),
    )
    return ClipSpec(tower, open_clip.text_spec(text, activation, pool="class", pad_token_id=PAD), model["embed_dim"])


def _write(spec: ClipSpec) -> Json:
    """open_clip_config.json without the decoder, whose weights are not here: open_clip needs them to build a CoCa."""
    pool = {"attn_pooler_heads": spec.vit.pool_heads, "attn_pooler_queries": spec.vit.pool_queries}
    vision = {**open_clip.vision_config(spec.vit), "attentional_pool": True, **pool, "output_tokens": True}
    text = {**open_clip.text_config(spec.text_tower), "embed_cls": True, "output_tokens": True}
    return open_clip.written(spec, vision, text, custom_text=True)


LAYOUTS = (
    Layout((COCA, PACKED), lambda model: bool(model.get("vision_cfg", {}).get("attentional_pool")), _read, _write),
)
