"""What a build stores of a picture: its own bytes, or a smaller upright JPEG; and what it refuses."""

import io

import numpy as np
import pytest
from PIL import Image

from spatial_clip_jax.data.build.pictures import RefusedError, Rule, stored
from spatial_clip_jax.data.decode import decode_image
from tests.data.test_decode import RAMP, encode


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_bytes_are_kept_unless_the_picture_is_larger_than_asked() -> None:
    data = encode(Image.fromarray(RAMP), "JPEG", quality=95)  # 64 x 48
    assert stored(data, "a", Rule()) == data and stored(data, "a", Rule(short_side=48)) == data
    for short_side, size in ((47, (63, 47)), (24, (32, 24)), (16, (21, 16))):  # 24 is a half, which draft mode can give
        smaller = stored(data, "a", Rule(short_side=short_side))
        assert opened(smaller).size == size and opened(smaller).format == "JPEG"
        reference = np.asarray(Image.fromarray(RAMP).resize(size, Image.Resampling.BICUBIC)).astype(int)
        assert np.abs(decode_image(smaller) - reference).mean() < 3
    assert len(stored(data, "a", Rule(short_side=24, quality=30))) < len(stored(data, "a", Rule(short_side=24)))


def test_pictures_of_any_mode_are_made_upright_rgb() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = stored(encode(Image.fromarray(np.rot90(RAMP).copy()), "PNG", exif=exif), "a", Rule(short_side=24))
    assert opened(turned).size == (32, 24) and 0x0112 not in opened(turned).getexif()
    deep = np.linspace(0, 65535, 48 * 64).astype(np.uint16).reshape(48, 64)
    alpha = Image.fromarray(np.dstack([RAMP, np.zeros((48, 64), np.uint8)]))
    grey = Image.fromarray(RAMP[..., 0])
    cases = (
        (encode(Image.fromarray(deep), "PNG"), 127),
        (encode(alpha, "PNG"), 255),
        (encode(grey, "PNG"), 125),
        (encode(Image.fromarray(RAMP).convert("CMYK"), "JPEG", quality=95), RAMP.mean()),
        (encode(grey, "GIF", save_all=True, append_images=[Image.new("L", (64, 48))]), 125),
    )
    for data, mean in cases:
        smaller = stored(data, "a", Rule(short_side=24))
        assert opened(smaller).mode == "RGB" and abs(decode_image(smaller).mean() - mean) < 3


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_refused_is_said_why() -> None:
    whole = encode(Image.fromarray(RAMP), "JPEG")
    cases = {
        b"": "damaged",
        b"text": "no picture",
        whole[: len(whole) // 2]: "damaged",
        encode(Image.new("L", (100, 15)), "PNG"): "too small",
        encode(Image.new("1", (10_000, 10_000)), "PNG"): "too large",
        encode(Image.new("1", (20_000, 20_000)), "PNG"): "too large",
    }
    for data, kind in cases.items():
        with pytest.raises(RefusedError) as found:
            stored(data, "cat.jpg", Rule())
        assert found.value.kind == kind and "cat.jpg" in str(found.value)
    assert stored(encode(Image.new("L", (100, 16)), "PNG"), "a", Rule())


def test_rules_are_checked() -> None:
    for wrong, says in (
        ({"short_side": 7}, "--short_side"),
        ({"quality": 0}, "--quality"),
        ({"least_side": 0}, "--least"),
    ):
        with pytest.raises(ValueError, match=says):
            Rule(**wrong)
