"""Which pictures a build takes, and what it stores of them."""

import io
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from spatial_clip_jax.data.decode import decode_picture

LONGEST = 65_500  # pixels of a side that JPEG can hold


@dataclass(frozen=True)
class Rule:
    """`short_side`: pictures with a longer one are brought to it and stored as JPEG of `quality`, 0 for none;
    `least_side`: pictures with a shorter one are refused.
    """

    short_side: int = 0
    quality: int = 90
    least_side: int = 16

    def __post_init__(self) -> None:
        if self.short_side and self.short_side < max(8, self.least_side):
            raise ValueError(f"--short_side must be 0, or at least 8 and --least_side, got {self.short_side}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"--quality must be from 1 to 100, got {self.quality}")
        if self.least_side < 1:
            raise ValueError(f"--least_side must be at least 1, got {self.least_side}")


class RefusedError(ValueError):
    """A picture that is not stored; `kind` says why in a word or two."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def stored(data: bytes, name: str, rule: Rule) -> bytes:
    """The bytes to store: the picture's own where it may stay as it is.

    Raises:
      RefusedError: if it is damaged, too large, or too small.
    """
    try:
        # A pixel above what is asked, so that a picture that was larger still is.
        picture = decode_picture(data, name, at_least=max(rule.short_side + 1, rule.least_side))
    except ValueError as error:
        raise RefusedError(_kind(error.__cause__), str(error)) from error
    if min(picture.size) < rule.least_side:
        raise RefusedError("too small", f"{name}: {picture.width} x {picture.height} pixels, least {rule.least_side}")
    return _smaller(picture, rule) if 0 < rule.short_side < min(picture.size) else data


def _kind(cause: BaseException | None) -> str:
    if isinstance(cause, UnidentifiedImageError):
        return "no picture"
    return "too large" if isinstance(cause, Image.DecompressionBombError) else "damaged"


def _smaller(picture: Image.Image, rule: Rule) -> bytes:
    factor = rule.short_side / min(picture.size)
    width, height = (min(LONGEST, max(rule.short_side, round(side * factor))) for side in picture.size)
    buffer = io.BytesIO()
    picture.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=rule.quality)
    return buffer.getvalue()
