"""`load` a CLIP, then ask it where things are: `SpatialClip` and its tasks."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from spatial_clip_jax.convert.export import save_adapter, save_clip
from spatial_clip_jax.convert.load import read_adapter, read_checkpoint
from spatial_clip_jax.data.decode import decode_image
from spatial_clip_jax.data.resize import native_view, resized, scaled_size, stacked, whole_patches
from spatial_clip_jax.data.tokenizer import encode, load_tokenizer
from spatial_clip_jax.evaluate.benchmark import Settings
from spatial_clip_jax.evaluate.prompts import embed_phrases
from spatial_clip_jax.fusion import encoders
from spatial_clip_jax.fusion.encoders import ADAPTER, Towers
from spatial_clip_jax.fusion.settings import FusionSettings, average_maps
from spatial_clip_jax.models.adapter import SpatialAdapter
from spatial_clip_jax.models.params import Params, abstract_params, init_module, join_params, split_params
from spatial_clip_jax.models.spec import AdapterSpec, ClipSpec, named_spec
from spatial_clip_jax.models.text import TextTower
from spatial_clip_jax.models.vision import VisionTower
from spatial_clip_jax.tasks.classify import classify
from spatial_clip_jax.tasks.ground import ground
from spatial_clip_jax.tasks.heatmap import GENERIC_PHRASES, similarity
from spatial_clip_jax.tasks.localize import Localization, localize
from spatial_clip_jax.tasks.relate import Relation, canonical, relate
from spatial_clip_jax.tasks.segment import Segmentation, segment

Picture = np.ndarray | Image.Image | str | Path
Pixels = UInt8[np.ndarray, "H W 3"]
TINY = Path(__file__).parent / "assets" / "tiny_clip"
# The read-out where no adapter is loaded: the best published one that needs no training, by its own authors' tables.
TRAINING_FREE = "clearclip"
SETTINGS_FILE = "settings.json"


def load(
    source: str | Path = "tiny",
    adapter: str | Path | None = None,
    *,
    spec: ClipSpec | str | None = None,
    tokenizer: str | Path | None = None,
) -> "SpatialClip":
    """A CLIP ready to be asked.

    source: "tiny", the bundled model; a local folder in Hugging Face's or open_clip's form; or a file of weights in
    either's names (.safetensors; .pt, .pth and .bin with torch installed).
    adapter: a trained adapter: a workdir of `launch.train`, or a folder written by `save_pretrained`.
    spec: the geometry, or its name in `models.spec.GEOMETRIES`, for a file, which does not say it.
    tokenizer: a tokenizer.json, by default the one beside the weights; without any, texts cannot be asked about.

    FileNotFoundError if a folder or file is missing; ValueError, naming every fault, if weights do not fit.
    """
    path = TINY if str(source) == "tiny" else Path(source)
    if not path.exists():
        raise FileNotFoundError(
            f"no checkpoint at {source!r}: give 'tiny' or a local folder with config.json, model.safetensors "
            "and tokenizer.json; a hub model is fetched with `hf download MODEL --local-dir FOLDER`"
        )
    found, params, beside = read_checkpoint(path, named_spec(spec) if isinstance(spec, str) else spec)
    model = SpatialClip(found, params, Path(tokenizer) if tokenizer else beside)
    return model if adapter is None else _with_adapter(model, Path(adapter))


def _with_adapter(model: "SpatialClip", folder: Path) -> "SpatialClip":
    found = [place for place in (folder, folder / "export") if (place / "adapter.json").is_file()]
    if not found:
        raise FileNotFoundError(f"no adapter in {folder}: expected adapter.json there or in its export/ folder")
    settings_file = found[0] / SETTINGS_FILE
    settings = Settings(**json.loads(settings_file.read_text())) if settings_file.is_file() else Settings()
    return model.with_adapter(*read_adapter(found[0], model.spec.vision), settings)


class SpatialClip:
    """A CLIP that also says where.

    Pictures are (H, W, 3) uint8 arrays, PIL images or paths, of any size and aspect; where several are taken they must
    share one size. `readout` is the one used where none is named: the adapter's if one is loaded. `settings` are the
    input scale and thresholds of the tasks (chosen on validation pictures when an adapter is trained). Embeddings and
    dense maps stay on the device; what the tasks give is NumPy.
    """

    def __init__(self, spec: ClipSpec, params: Params, tokenizer_file: Path | None):
        self.spec, self.tokenizer_file = spec, tokenizer_file
        self.tokenizer = load_tokenizer(tokenizer_file) if tokenizer_file else None
        self.settings, self.readout = Settings(), TRAINING_FREE
        self.adapter_spec: AdapterSpec | None = None
        self.clip_params: Params = jax.tree.map(jnp.asarray, params)
        self.params: Params = {"vision": self.clip_params["vision"]}
        self.towers = Towers(spec.vision, _vision_definition(spec))
        self._text = _text_definition(spec)

    def with_adapter(self, spec: AdapterSpec, params: Params, settings: Settings | None = None) -> "SpatialClip":
        """The same CLIP with an adapter beside it; classification stays what it is."""
        model = SpatialClip(self.spec, self.clip_params, self.tokenizer_file)
        model.adapter_spec, model.settings, model.readout = spec, settings or self.settings, ADAPTER
        model.params = {**self.params, "adapter": jax.tree.map(jnp.asarray, params)}
        model.towers = Towers(self.spec.vision, self.towers.vision, adapter_definition(spec, self.spec))
        return model

    def without_adapter(self) -> "SpatialClip":
        """The same CLIP as it was loaded."""
        return SpatialClip(self.spec, self.clip_params, self.tokenizer_file)

    def new_adapter(self, spec: AdapterSpec, seed: int) -> tuple[Towers, Params]:
        """An untrained adapter for this CLIP: the static half of both towers, and the adapter's parameters."""
        tower = join_params(self.towers.vision, self.params["vision"])
        definition, params = split_params(init_module(lambda rngs: SpatialAdapter(spec, tower, rngs=rngs), seed))
        return Towers(self.spec.vision, self.towers.vision, definition), params

    def encode_text(self, texts: Sequence[str]) -> Float[Array, "k e"]:
        """Text embeddings of unit length, of the texts as they are."""
        if isinstance(texts, str) or not len(texts):
            raise ValueError(f"encode_text takes a list of texts, got {texts!r}")
        if self.tokenizer is None:
            raise ValueError("this checkpoint came without tokenizer.json: give one to load(..., tokenizer=FILE)")
        ids = encode(self.tokenizer, texts, self.spec.text.context_length)
        # Filled up to a power of two, so that a new number of phrases seldom means a new compilation.
        padded = np.concatenate([ids, np.repeat(ids[:1], _power_of_two(len(ids)) - len(ids), axis=0)])
        return encoders.embed_texts(self._text, self.clip_params["text"], padded)[: len(ids)]

    def encode_image(self, images: Picture | Sequence[Picture], resolution: str = "native") -> Float[Array, "b e"]:
        """Global embeddings of unit length.

        resolution: "native", the checkpoint's own preprocessing (short side to the native size, centre square); "keep",
        the picture's own size cut down to whole patches, with the position table resized.
        """
        pictures = [decode_image(picture) for picture in _listed(images)]
        vision = self.spec.vision
        if resolution == "native":
            views = [native_view(picture, vision.image_size) for picture in pictures]
        elif resolution == "keep":
            views = [resized(p, whole_patches(p.shape[:2], vision.patch_size)) for p in pictures]
        else:
            raise ValueError(f"resolution must be 'native' or 'keep', got {resolution!r}")
        return encoders.embed_images(self.towers, self.params, stacked(views, "encode_image"))

    def dense(
        self,
        images: Picture | Sequence[Picture],
        readout: str | None = None,
        scales: Sequence[float] = (1.0,),
        fusion: FusionSettings | None = None,
    ) -> Float[Array, "b h w e"]:
        """Dense maps of unit length in text space.

        readout: "adapter" or a training-free one (`self.towers.readouts`); by default the adapter's if one is loaded.
        scales: input sizes, as multiples of the native one for the short side (aspect kept, whole patches); several are
        averaged on the finest grid. fusion: windows as well, by these settings, which name their own read-out.
        """
        pictures = [decode_image(picture) for picture in _listed(images)]
        if not len(scales) or min(scales) <= 0:
            raise ValueError(f"scales must be positive numbers, got {tuple(scales)}")
        views = [self._views(pictures, scale) for scale in scales]
        if fusion is not None:
            return average_maps([encoders.fused_maps(self.towers, self.params, view, fusion) for view in views])
        name = readout or self.readout
        return average_maps([encoders.dense_maps(self.towers, self.params, view, name) for view in views])

    def localize(self, image: Picture, phrases: Sequence[str]) -> list[Localization]:
        """Where each phrase is: point, boxes and heatmap, in the picture's own pixels."""
        fit, size = self._similarity(image, phrases)
        return localize(fit, size, self.settings.box_threshold)

    def segment(self, image: Picture, phrases: Sequence[str], background: bool = True) -> Segmentation:
        """Which pixels belong to which phrase, -1 for the background."""
        fit, size = self._similarity(image, phrases)
        return segment(fit, size, background, threshold=self.settings.segment_threshold)

    def relate(self, image: Picture, first: str, relation: str, second: str) -> Relation:
        """How probable it is that `first` stands in `relation` to `second` ("left of", "above", "inside", ...)."""
        canonical(relation)  # an unknown relation fails before the towers run
        places = self.localize(image, [first, second])
        return relate(places[0], places[1], relation)

    def ground(self, image: Picture, phrase: str) -> Localization:
        """Where the thing named by another is: "the green door of the white house"."""
        pixels = decode_image(image)
        dense = self.dense(pixels, scales=(self.settings.scale,))[0]
        threshold = self.settings.box_threshold
        return ground(phrase, dense, pixels.shape[:2], self._phrases, generic=self._generic(), threshold=threshold)

    def classify(self, images: Picture | Sequence[Picture], texts: Sequence[str]) -> Float[np.ndarray, "b k"]:
        """Probability of each text for each picture, by the global embedding: the original CLIP's, adapter or not."""
        scale = float(np.exp(self.clip_params["logit_scale"]))
        return classify(self.encode_image(images), self.encode_text(texts), scale)

    def save_pretrained(self, folder: str | Path) -> None:
        """A Hugging Face folder for `transformers.CLIPModel.from_pretrained`; beside it the adapter and its twin."""
        save_clip(folder, self.spec, self.clip_params, self.tokenizer_file)
        if self.adapter_spec:
            save_adapter(folder, self.adapter_spec, self.params["adapter"], self.spec)
            (Path(folder) / SETTINGS_FILE).write_text(json.dumps(asdict(self.settings), indent=2))

    def _views(self, pictures: Sequence[Pixels], scale: float) -> UInt8[np.ndarray, "b h w 3"]:
        vision = self.spec.vision
        sizes = [scaled_size(p.shape[:2], scale * vision.image_size, vision.patch_size) for p in pictures]
        return stacked([resized(p, size) for p, size in zip(pictures, sizes, strict=True)], "dense")

    def _similarity(self, image: Picture, phrases: Sequence[str]) -> tuple[Float[np.ndarray, "k h w"], tuple[int, int]]:
        pixels = decode_image(image)
        dense = self.dense(pixels, scales=(self.settings.scale,))[0]
        return similarity(dense, self._phrases(_texts(phrases)), generic=self._generic()), pixels.shape[:2]

    def _phrases(self, phrases: Sequence[str]) -> Float[np.ndarray, "k e"]:
        return embed_phrases(self.encode_text, phrases)

    def _generic(self) -> Float[Array, "m e"] | None:
        return self.encode_text(GENERIC_PHRASES) if self.settings.generic else None


def _vision_definition(spec: ClipSpec) -> Any:
    return abstract_params(lambda rngs: VisionTower(spec.vision, spec.embed_dim, rngs=rngs))[0]


def _text_definition(spec: ClipSpec) -> Any:
    return abstract_params(lambda rngs: TextTower(spec.text, spec.embed_dim, rngs=rngs))[0]


def adapter_definition(adapter: AdapterSpec, clip: ClipSpec) -> Any:
    """The static half of an adapter for a CLIP of this geometry."""

    def build(rngs: Any) -> SpatialAdapter:
        return SpatialAdapter(adapter, VisionTower(clip.vision, clip.embed_dim, rngs=rngs), rngs=rngs)

    return abstract_params(build)[0]


def _listed(images: Picture | Sequence[Picture]) -> list[Picture]:
    """The pictures of a batch: a list, one picture, or an array (b, H, W, 3)."""
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    return [images] if isinstance(images, Image.Image | str | Path) else list(images)


def _texts(phrases: Sequence[str]) -> list[str]:
    if isinstance(phrases, str) or not len(phrases):
        raise ValueError(f"expected a list of phrases, such as ['a red circle'], got {phrases!r}")
    return list(phrases)


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
