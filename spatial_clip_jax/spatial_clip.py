"""`SpatialClip`: a CLIP that also says where, and its tasks."""

import contextlib
import copy
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8
from tqdm import tqdm

from spatial_clip_jax.convert.card import Card, Origin, Training
from spatial_clip_jax.convert.export import SavedAdapter, save_clip
from spatial_clip_jax.convert.source import Form
from spatial_clip_jax.data.pictures import Picture, Pixels, decoded, pixels_of
from spatial_clip_jax.data.resize import affordable, native_view, resized, scaled_size, stacked, whole_patches
from spatial_clip_jax.data.tokenizer import check_tokenizer, encode, load_tokenizer
from spatial_clip_jax.evaluate.benchmark import Settings
from spatial_clip_jax.evaluate.prompts import embed_phrases
from spatial_clip_jax.fusion import encoders
from spatial_clip_jax.fusion.encoders import ADAPTER, Towers
from spatial_clip_jax.fusion.fuser import Fuser, check_budget
from spatial_clip_jax.fusion.pixels import PixelLabels, Upsampling, label_pixels, rows_within
from spatial_clip_jax.fusion.pyramid import Pyramid
from spatial_clip_jax.fusion.settings import WINDOWS, FusionSettings, average_maps
from spatial_clip_jax.models.adapter import SpatialAdapter, materialised, merge
from spatial_clip_jax.models.clip import similarity_scale
from spatial_clip_jax.models.compute import DTYPES, Compute
from spatial_clip_jax.models.params import Params, abstract_params, init_module, join_params, split_params
from spatial_clip_jax.models.spec import AdapterSpec, ClipSpec, is_finite
from spatial_clip_jax.models.text import TextTower
from spatial_clip_jax.models.vision import VisionTower
from spatial_clip_jax.tasks.classify import classify
from spatial_clip_jax.tasks.ground import ground
from spatial_clip_jax.tasks.heatmap import GENERIC_PHRASES, similarity
from spatial_clip_jax.tasks.localize import Localization, localize
from spatial_clip_jax.tasks.phrases import checked_phrases, checked_texts, items
from spatial_clip_jax.tasks.relate import Relation, canonical, relate
from spatial_clip_jax.tasks.segment import Segmentation, segment

# The read-out where no adapter is loaded: the best published one that needs no training, by its own authors' tables.
TRAINING_FREE = "clearclip"
MAX_SCALE = 100.0  # of the input: even a native view of one patch has more than resize.MAX_TOKENS there


class SpatialClip:
    """A CLIP that also says where.

    Pictures are (H, W, 3) uint8 arrays, PIL images or paths, of any size and aspect; where several are taken they must
    share one size, but for `fuse`. `readout` is the one used where none is named: the adapter's if one is loaded.
    `settings` are the input scale and thresholds of the tasks (chosen on validation pictures when an adapter is
    trained). Embeddings and one-pass dense maps stay on the device; what `fuse` and the tasks give is NumPy.
    """

    def __init__(self, spec: ClipSpec, params: Params, tokenizer_file: Path | None, dtype: DTypeLike = "float32"):
        self.spec, self.compute = spec, Compute(_known_dtype(dtype))
        self.tokenizer = load_tokenizer(tokenizer_file) if tokenizer_file else None
        # Its bytes, so that saving needs no file that may be gone by then.
        self.tokenizer_json = tokenizer_file.read_bytes() if tokenizer_file else None
        if self.tokenizer is not None:
            check_tokenizer(self.tokenizer, spec.text_tower, str(tokenizer_file))
        self.settings = Settings()
        self.form = Form()  # how the weights were stored, for saving them likewise
        # What an exported folder's card says of where the weights are from.
        self.origin = Origin("unnamed")
        self.training: Training | None = None
        self.adapter_spec: AdapterSpec | None = None
        self.clip_params: Params = jax.device_put(params)
        self.params: Params = {"vision": self.clip_params["vision"]}
        self.towers = encoders.abstract_towers(spec, self.compute)[0]
        self._fusers: dict[tuple[Pyramid, int | None], Fuser] = {}
        self.readout = _training_free(self.towers)
        self._text = None if spec.text is None else _text_definition(spec)

    def with_adapter(
        self, spec: AdapterSpec, params: Params, settings: Settings | None = None, training: Training | None = None
    ) -> "SpatialClip":
        """The same CLIP with an adapter beside it; classification stays what it is. training: for its card."""
        model = copy.copy(self)
        model.adapter_spec, model.settings, model.readout = spec, settings or self.settings, ADAPTER
        model.training = training
        model.params = {**self.params, "adapter": jax.device_put(params)}
        model.towers = encoders.abstract_towers(self.spec, self.compute, spec)[0]
        model._fusers = {}
        return model

    def without_adapter(self) -> "SpatialClip":
        """The same CLIP as it was loaded."""
        model = copy.copy(self)
        model.adapter_spec, model.settings, model.readout = None, Settings(), _training_free(self.towers)
        model.training = None
        model.params = {"vision": self.params["vision"]}
        model.towers = encoders.abstract_towers(self.spec, self.compute)[0]
        model._fusers = {}
        return model

    def computing(self, compute: Compute) -> "SpatialClip":
        """The same CLIP, which computes so; ValueError if its towers cannot."""
        model = copy.copy(self)
        model.compute, model._fusers = compute, {}
        model.towers = encoders.abstract_towers(self.spec, compute, self.adapter_spec)[0]
        return model

    def new_adapter(self, spec: AdapterSpec, seed: int) -> tuple[Towers, Params]:
        """An untrained adapter for this CLIP: the static half of both towers, and the adapter's parameters."""
        tower = join_params(self.towers.vision, self.params["vision"])
        params = split_params(init_module(lambda rngs: SpatialAdapter(spec, tower, rngs=rngs), seed))[1]
        return encoders.abstract_towers(self.spec, self.compute, spec)[0], params

    def encode_text(self, texts: Sequence[str]) -> Float[Array, "k e"]:
        """Text embeddings of unit length, of the texts as they are."""
        texts, text = checked_texts(texts), self.spec.text_tower
        if self.tokenizer is None:
            raise ValueError("this checkpoint came without tokenizer.json: give one to load(..., tokenizer=FILE)")
        ids = encode(self.tokenizer, texts, text)
        # Filled up to a power of two, so that a new number of phrases seldom means a new compilation.
        padded = np.concatenate([ids, np.repeat(ids[:1], _power_of_two(len(ids)) - len(ids), axis=0)])
        return encoders.embed_texts(self._text, self.clip_params["text"], padded)[: len(ids)]

    def encode_image(self, images: Picture | Sequence[Picture], resolution: str = "native") -> Float[Array, "b e"]:
        """Global embeddings of unit length.

        resolution: "native", the checkpoint's own preprocessing (CLIP: short side to the native size, centre square);
        or "keep", the picture's own size cut down to whole patches, with the position table resized.
        """
        pictures, vision = decoded(images), self.spec.vision
        if resolution == "native":
            views = stacked([native_view(picture, vision) for picture in pictures], "encode_image")
        elif resolution == "keep":
            sizes = [whole_patches(p.shape[:2], vision.patch_size) for p in pictures]
            views = self._resized(pictures, sizes, "encode_image")
        else:
            raise ValueError(f"resolution must be 'native' or 'keep', got {resolution!r}")
        return encoders.embed_images(self.towers, self.params, views)

    def dense(
        self,
        images: Picture | Sequence[Picture],
        readout: str | None = None,
        scales: Sequence[float] = (1.0,),
        fusion: FusionSettings | None = None,
    ) -> Float[Array, "b h w e"]:
        """Dense maps of unit length in text space.

        readout: "adapter", "windows" (of the frozen tower, fused by FusionSettings as they are, in many passes) or a
        training-free one of one pass (`self.towers.readouts`); by default the adapter's if one is loaded.
        scales: input sizes, as multiples of the native one for the short side (aspect kept, whole patches); several are
        averaged on the finest grid. fusion: windows as well, by these settings, which name their own read-out, so that
        none can be given beside them.
        """
        if readout == WINDOWS and fusion is None:
            readout, fusion = None, FusionSettings()
        name = self._readout(readout, fusion)
        pictures = decoded(images)
        views = [self._views(pictures, scale) for scale in _scales(scales)]
        if fusion is not None:
            return average_maps([encoders.fused_maps(self.towers, self.params, view, fusion) for view in views])
        return average_maps([encoders.dense_maps(self.towers, self.params, view, name) for view in views])

    def fuser(self, pyramid: Pyramid | None = None, budget: int | None = None) -> Fuser:
        """What fuses pictures by sliding windows at several sizes, with the programs it has compiled so far.

        pyramid: the sizes and how windows are read; by default three sizes, and a read-out that needs no training, also
        where an adapter is loaded (`Pyramid(readout="adapter")` is read by that). budget: bytes of the device's memory,
        parameters among them; None for half of what is free.
        """
        asked = Pyramid(readout=_training_free(self.towers)) if pyramid is None else pyramid
        if not isinstance(asked, Pyramid):
            raise ValueError(f"pyramid must be a Pyramid or None, got {pyramid!r}")
        check_budget(budget)
        if (asked, budget) not in self._fusers:
            self._fusers[asked, budget] = Fuser(self.towers, self.params, asked, budget=budget)
        return self._fusers[asked, budget]

    def fuse(
        self, images: Picture | Sequence[Picture], pyramid: Pyramid | None = None, budget: int | None = None
    ) -> list[Float[np.ndarray, "_ _ e"]]:
        """Dense maps by sliding windows at several sizes, a list of one a picture, unit length, in many passes each.

        images: of any sizes; pictures of like size go through the tower together, and the first of a size are compiled
        for, eight times at most. pyramid, budget: see `fuser`.
        """
        pictures = decoded(images)
        found = self.fuser(pyramid, budget).maps(pictures)
        shown = tqdm(found, "fusing", total=len(pictures), unit="picture", disable=None if len(pictures) > 1 else True)
        return [fused for _, fused in sorted(shown, key=lambda numbered: numbered[0])]

    def label(
        self,
        image: Picture,
        phrases: Sequence[str],
        pyramid: Pyramid | None = None,
        budget: int | None = None,
        upsampling: Upsampling | None = None,
    ) -> PixelLabels:
        """Which phrase fits each pixel best, of as many as there are: edges follow the picture's own colours.

        Phrases are taken some at a time, so that thousands of them fit into the budget. Unlike `segment`, no map of
        each phrase is kept and there is no background. Generic phrases are subtracted as there. pyramid, budget: see
        `fuser`. ValueError also for a budget that is too small.
        """
        asked = Upsampling() if upsampling is None else upsampling
        if not isinstance(asked, Upsampling):
            raise ValueError(f"upsampling must be an Upsampling or None, got {upsampling!r}")
        texts, pixels, fuser = checked_phrases(phrases), pixels_of(image), self.fuser(pyramid, budget)
        vectors = self._phrases(texts)
        generic = self._generic()
        if generic is not None:
            vectors = vectors - generic.mean(0)
        ((_, tokens),) = fuser.maps([pixels])
        rows = rows_within(fuser.spare, tokens.shape, len(vectors), pixels.shape[:2], asked.radius)
        return PixelLabels(*jax.device_get(label_pixels(tokens, vectors, pixels, asked, rows=rows)))

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
        (phrase,), pixels = checked_phrases([phrase]), pixels_of(image)
        dense = self.dense(pixels, scales=(self.settings.scale,))[0]
        threshold = self.settings.box_threshold
        return ground(phrase, dense, pixels.shape[:2], self._phrases, generic=self._generic(), threshold=threshold)

    def classify(self, images: Picture | Sequence[Picture], texts: Sequence[str]) -> Float[np.ndarray, "b k"]:
        """Probability of each text for each picture, by the global embedding: the original CLIP's, adapter or not.

        Of a SigLIP each by itself (a sigmoid), as it was trained; of others, among the texts (a softmax).
        """
        embeddings = self.encode_text(checked_phrases(texts))
        scale, bias = similarity_scale(self.clip_params), self.clip_params.get("logit_bias")
        return classify(self.encode_image(images), embeddings, scale, None if bias is None else float(bias))

    def save_pretrained(self, folder: str | Path) -> None:
        """A Hugging Face folder for `transformers.CLIPModel.from_pretrained`, with adapter, PyTorch twin and card.

        A README.md is overwritten only if it is one of our cards.
        """
        adapter = None
        if self.adapter_spec:
            adapter = SavedAdapter(*materialised(*self._modules()), asdict(self.settings))
        self._save(folder, self.clip_params, self._card(), adapter)

    def save_merged(self, folder: str | Path, alpha: float) -> None:
        """A plain Hugging Face folder whose tower is alpha * adapter + (1 - alpha) * original in its last blocks.

        For detectors and segmenters that take a CLIP and nothing beside it; classification changes with the weights.
        ValueError without a "copy" or "lora" adapter, or for an `alpha` outside [0, 1].
        """
        if self.adapter_spec is None:
            raise ValueError("there is no adapter to merge: load(..., adapter=FOLDER)")
        vision = merge(*self._modules(), alpha)
        card = replace(self._card(), adapter=None, merged=alpha)
        self._save(folder, {**self.clip_params, "vision": vision}, card)

    def _modules(self) -> tuple[VisionTower, SpatialAdapter]:
        """The tower and the adapter beside it."""
        tower = join_params(self.towers.vision, self.params["vision"])
        return tower, join_params(self.towers.adapter, self.params["adapter"])

    def _save(self, folder: str | Path, params: Params, card: Card, adapter: SavedAdapter | None = None) -> None:
        save_clip(folder, self.spec, params, self.tokenizer_json, adapter=adapter, card=card, form=self.form)

    def _card(self) -> Card:
        texts = self.tokenizer is not None
        return Card(self.spec, self.origin, self.adapter_spec, self.training, texts=texts)

    def _readout(self, readout: str | None, fusion: FusionSettings | None) -> str:
        """The read-out's name; ValueError for an unknown one or one beside `fusion`, which names its own."""
        if fusion is not None and (readout is not None or not isinstance(fusion, FusionSettings)):
            raise ValueError(
                f"fusion must be FusionSettings, given without readout=, got {fusion!r} and readout={readout!r}"
            )
        name = fusion.readout if fusion else self.readout if readout is None else readout
        try:
            self.towers.check(name)
        except ValueError as error:
            raise ValueError(f"{error}; or, of many passes, {WINDOWS!r}") from None
        return name

    def _views(self, pictures: Sequence[Pixels], scale: float) -> UInt8[np.ndarray, "b h w 3"]:
        vision = self.spec.vision
        sizes = [scaled_size(p.shape[:2], scale * vision.image_size, vision.patch_size) for p in pictures]
        return self._resized(pictures, sizes, "dense")

    def _resized(
        self, pictures: Sequence[Pixels], sizes: Sequence[tuple[int, int]], what: str
    ) -> UInt8[np.ndarray, "b h w 3"]:
        patch = self.spec.vision.patch_size
        return stacked([resized(p, affordable(size, patch)) for p, size in zip(pictures, sizes, strict=True)], what)

    def _similarity(self, image: Picture, phrases: Sequence[str]) -> tuple[Float[np.ndarray, "k h w"], tuple[int, int]]:
        texts, pixels = checked_phrases(phrases), pixels_of(image)
        dense = self.dense(pixels, scales=(self.settings.scale,))[0]
        return similarity(dense, self._phrases(texts), generic=self._generic()), pixels.shape[:2]

    def _phrases(self, phrases: Sequence[str]) -> Float[np.ndarray, "k e"]:
        return embed_phrases(self.encode_text, phrases)

    def _generic(self) -> Float[Array, "m e"] | None:
        return self.encode_text(GENERIC_PHRASES) if self.settings.generic else None


def _known_dtype(dtype: DTypeLike) -> str:
    with contextlib.suppress(TypeError):
        if jnp.dtype(dtype).name in DTYPES:
            return jnp.dtype(dtype).name
    raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")


def _training_free(towers: Towers) -> str:
    """The read-out where none is named: TRAINING_FREE, but of a tower that lacks it the first it has."""
    return TRAINING_FREE if TRAINING_FREE in towers.readouts else towers.readouts[0]


def _text_definition(spec: ClipSpec) -> Any:
    return abstract_params(lambda rngs: TextTower(spec.text_tower, spec.embed_dim, rngs=rngs))[0]


def _scales(scales: Sequence[float]) -> list[float]:
    listed = items(scales)
    if not listed or not all(is_finite(scale) and 0 < scale <= MAX_SCALE for scale in listed):
        raise ValueError(f"scales must be a list of positive numbers up to {MAX_SCALE:g}, got {scales!r}")
    return listed


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
