"""Decoding: every kind of picture comes out upright in RGB, and every damage is a ValueError with a name."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spatial_clip_jax.data.decode import decode_image

# Smooth, so that JPEG keeps it within a few levels; red grows to the right, green downwards.
HEIGHT, WIDTH = 48, 64
RAMP = np.stack(
    [
        np.broadcast_to(np.linspace(0, 250, WIDTH), (HEIGHT, WIDTH)),
        np.broadcast_to(np.linspace(0, 250, HEIGHT)[:, None], (HEIGHT, WIDTH)),
        np.full((HEIGHT, WIDTH), 60.0),
    ],
    axis=-1,
).astype(np.uint8)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_plain_pictures_from_every_source(tmp_path: Path) -> None:
    encoded = encode(Image.fromarray(RAMP), "PNG")
    (tmp_path / "ramp.png").write_bytes(encoded)
    for source in (encoded, tmp_path / "ramp.png", str(tmp_path / "ramp.png"), Image.fromarray(RAMP), RAMP):
        np.testing.assert_array_equal(decode_image(source), RAMP)
    jpeg = decode_image(encode(Image.fromarray(RAMP), "JPEG", quality=95))
    assert jpeg.shape == RAMP.shape and np.abs(jpeg.astype(int) - RAMP).mean() < 2


def test_grey_palette_and_bilevel() -> None:
    grey = RAMP[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(grey), "PNG")), expected)
    np.testing.assert_array_equal(decode_image(grey), expected)
    np.testing.assert_array_equal(decode_image(grey[..., None]), expected)
    few = Image.fromarray(RAMP // 64 * 64)
    palette = few.quantize(256)
    np.testing.assert_array_equal(decode_image(encode(palette, "PNG")), np.asarray(palette.convert("RGB")))
    black_and_white = decode_image(encode(Image.fromarray(grey > 100), "PNG"))
    np.testing.assert_array_equal(black_and_white[..., 0], np.where(grey > 100, 255, 0))


def test_cmyk() -> None:
    cmyk = np.zeros((8, 8, 4), np.uint8)
    cmyk[..., 0] = 255  # full cyan: no red
    decoded = decode_image(encode(Image.fromarray(cmyk, "CMYK"), "JPEG", quality=100))
    np.testing.assert_allclose(decoded[4, 4], [0, 255, 255], atol=2)


def test_transparency_is_shown_over_white() -> None:
    alpha = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
    alpha[:, : WIDTH // 2] = 0
    alpha[:, WIDTH // 2] = 128
    image = np.concatenate([RAMP, alpha], axis=2)
    for decoded in (decode_image(encode(Image.fromarray(image), "PNG")), decode_image(image)):
        assert (decoded[:, : WIDTH // 2] == 255).all()
        np.testing.assert_array_equal(decoded[:, WIDTH // 2 + 1 :], RAMP[:, WIDTH // 2 + 1 :])
        half = (RAMP[:, WIDTH // 2].astype(float) * 128 + 255 * 127) / 255
        np.testing.assert_allclose(decoded[:, WIDTH // 2], half, atol=1)
    grey_alpha = Image.fromarray(image).convert("LA")
    assert (decode_image(encode(grey_alpha, "PNG"))[:, : WIDTH // 2] == 255).all()
    palette = Image.fromarray(np.zeros((4, 4), np.uint8), "P")
    palette.putpalette([10, 20, 30] * 256)
    assert (decode_image(encode(palette, "PNG", transparency=0)) == 255).all()
    assert (decode_image(encode(palette, "PNG")) == [10, 20, 30]).all()


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    deep = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    expected = np.round(deep / 257).astype(np.uint8)
    for source in (deep, encode(Image.fromarray(deep), "PNG"), encode(Image.fromarray(deep), "TIFF")):
        np.testing.assert_array_equal(decode_image(source)[..., 1], expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = {
        1: RAMP,
        2: RAMP[:, ::-1],
        3: RAMP[::-1, ::-1],
        4: RAMP[::-1],
        5: RAMP.swapaxes(0, 1),
        6: np.rot90(RAMP),
        7: RAMP[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(RAMP, -1),
    }[orientation]
    encoded = encode(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    np.testing.assert_array_equal(decode_image(encoded), RAMP)


def test_damaged_exif_does_not_condemn_the_pixels() -> None:
    for exif in (b"Exif\0\0garbagegarbage", b"Exif\0\0II*\0"):
        np.testing.assert_array_equal(decode_image(encode(Image.fromarray(RAMP), "PNG", exif=exif)), RAMP)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (6, 5), colour) for colour in ("red", "blue")]
    encoded = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode_image(encoded) == [255, 0, 0]).all() and decode_image(encoded).shape == (5, 6, 3)


def test_damage_is_named(tmp_path: Path) -> None:
    encoded = encode(Image.fromarray(RAMP), "JPEG")
    faults = {
        b"": "0 bytes",
        encoded[: len(encoded) // 2]: "[Tt]runcated",
        b"text": "no known picture format",
    }
    for damaged, reason in faults.items():
        with pytest.raises(ValueError, match=f"Cannot decode cat.jpg: .*{reason}"):
            decode_image(damaged, "cat.jpg")
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match="empty.png"):
        decode_image(tmp_path / "empty.png")
    with pytest.raises(FileNotFoundError, match="missing.png"):
        decode_image(tmp_path / "missing.png")
    for array in (np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"expected \(H,W,3\)"):
            decode_image(array)
    with pytest.raises(ValueError, match="0 x 4 pixels, it has none"):
        decode_image(Image.new("RGB", (0, 4)))
    with pytest.raises(ValueError, match="floating point"):
        decode_image(encode(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 20_000])
def test_decompression_bombs_are_refused(side: int) -> None:
    bomb = encode(Image.new("1", (side, side)), "PNG")
    assert len(bomb) < 100_000
    with pytest.raises(ValueError, match="bomb.png: .*pixels"):
        decode_image(bomb, "bomb.png")


@pytest.mark.filterwarnings("ignore")
def test_random_damage_never_raises_anything_else() -> None:
    rng = random.Random(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(RAMP)
    kinds = [
        ("JPEG", {"exif": exif}),
        ("PNG", {"exif": exif}),
        ("WEBP", {}),
        ("GIF", {}),
        ("TIFF", {}),
        ("BMP", {}),
    ]
    for kind, options in kinds:
        encoded = encode(image, kind, **options)
        for _ in range(150):
            damaged = bytearray(encoded)
            for _ in range(rng.randrange(1, 8)):
                damaged[rng.randrange(min(len(damaged), rng.choice([60, 10**6])))] = rng.randrange(256)
            try:
                length = rng.choice([len(damaged), rng.randrange(1, len(damaged))])
                decoded = decode_image(bytes(damaged[:length]))
            except ValueError as error:
                assert "Cannot decode the picture" in str(error)
            else:
                assert decoded.dtype == np.uint8 and decoded.shape[2] == 3


def test_a_jpeg_may_be_decoded_smaller_but_not_too_small() -> None:
    encoded = encode(Image.fromarray(np.kron(RAMP, np.ones((8, 8, 1), np.uint8))), "JPEG", quality=95)
    smaller = decode_image(encoded, at_least=90)
    assert smaller.shape == (HEIGHT * 2, WIDTH * 2, 3)
    assert decode_image(encoded, at_least=10_000).shape == (HEIGHT * 8, WIDTH * 8, 3)
    assert np.abs(smaller[::2, ::2].astype(int) - RAMP).mean() < 3
