"""What towers of every kind say of pictures: their normalisation, their resize, and the grid of places in them."""

Triple = tuple[float, float, float]

CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
RESIZES = ("huggingface", "open_clip", "bilinear", "bilinear_antialias", "bilinear_corners")
INTERPOLATIONS = ("bicubic", "bilinear")


class Patches:
    """The grid of places that a tower of either kind describes, one every `patch_size` pixels."""

    image_size: int
    patch_size: int

    @property
    def native_grid(self) -> tuple[int, int]:
        """Patches (rows, columns) of a picture of the native size."""
        side = self.image_size // self.patch_size
        return side, side

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patches (rows, columns) of `height` x `width` pixels; ValueError unless they are whole patches."""
        patch = self.patch_size
        if min(height, width) < patch or height % patch or width % patch:
            nearest = tuple(max(patch, round(side / patch) * patch) for side in (height, width))
            raise ValueError(
                f"A picture of {height}x{width} pixels does not divide into patches of {patch}x{patch}: "
                f"resize or crop it to multiples of {patch}, for example {nearest[0]}x{nearest[1]}."
            )
        return height // patch, width // patch
