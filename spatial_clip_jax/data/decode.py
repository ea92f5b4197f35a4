"""From an encoded picture of any kind to an RGB array."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, UnidentifiedImageError

# Larger pictures are refused, since a few kilobytes can claim gigabytes of pixels. Pillow warns from here on.
MAX_PIXELS = 89_478_485

# What Pillow raises for damaged bytes, by decoder.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

EXIF_ORIENTATION = 0x0112
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Picture = bytes | str | Path | Image.Image | np.ndarray


def decode_image(source: Picture, name: str = "", at_least: int = 0) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes one picture to an array; see `decode_picture`, which says what is accepted and raised."""
    return np.array(decode_picture(source, name, at_least))


def decode_picture(source: Picture, name: str = "", at_least: int = 0) -> Image.Image:
    """Decodes one picture to upright RGB, and leaves it with Pillow, which cuts and resizes without copies.

    The EXIF orientation is applied; transparency is shown over white; 16-bit samples are scaled to 8 bits;
    of an animation the first frame is taken.

    Args:
      source: encoded bytes, a path, a PIL image, or an array (H,W), (H,W,1), (H,W,3) or (H,W,4) of uint8, or
        (H,W) of uint16.
      name: what errors call the picture; a path names itself.
      at_least: if positive, a JPEG may be decoded at a half, a quarter or an eighth of its size, which is
        faster, as long as both of its sides keep this many pixels.

    Raises:
      FileNotFoundError: if the path does not exist.
      ValueError: if the picture is empty, damaged, cut short, too large or of an unknown kind.
    """
    name = name or (str(source) if isinstance(source, (str, Path)) else "the picture")
    try:
        with _open(source) as image:
            if not image.width * image.height:
                raise ValueError(f"{image.width} x {image.height} pixels, it has none")
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(
                    f"{image.width} x {image.height} pixels, more than {MAX_PIXELS} in all"
                )
            if at_least > 0:
                image.draft(None, (at_least, at_least))
            image.load()
            return _to_rgb(_upright(image))
    except FileNotFoundError:
        raise
    except DAMAGE as error:
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "no known picture format" if unknown else str(error) or type(error).__name__
        expected = "Expected a whole JPEG, PNG, WebP or similar."
        raise ValueError(f"Cannot decode {name}: {reason}. {expected}") from error


def _open(source: Picture) -> Image.Image:
    if isinstance(source, Image.Image):
        return source.copy()
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, bytes):
        if not source:
            raise ValueError("it is empty (0 bytes)")
        return Image.open(io.BytesIO(source))
    return Image.open(source)


def _from_array(array: Shaped[np.ndarray, "..."]) -> Image.Image:
    flat = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    colours = flat.ndim == 3 and flat.shape[2] in (3, 4) and flat.dtype == np.uint8
    grey = flat.ndim == 2 and flat.dtype in (np.uint8, np.uint16)
    if not (colours or grey) or flat.size == 0:
        raise ValueError(f"an array of shape {array.shape} and type {array.dtype}; expected (H,W,3) of uint8")
    return Image.fromarray(np.ascontiguousarray(flat))


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    except (SyntaxError, struct.error):  # Damaged EXIF data says nothing against the pixels.
        return image
    transposition = TRANSPOSITIONS.get(orientation)
    return image if transposition is None else image.transpose(transposition)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow would clip 16 bits to 8; 65535 / 255 is exactly 257.
        samples = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((samples + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating point samples have no fixed range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy
