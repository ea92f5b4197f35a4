"""What every spec checks of its fields, which may come from a damaged or a foreign file."""

from numbers import Real
from typing import Any, TypeGuard

# Far beyond any CLIP: what is larger is a damaged file, and building it would take hours or overflow.
MAX_SIZE, MAX_LAYERS = 1_000_000, 200
LARGEST_FP32 = 3.4e38


def is_finite(value: Any) -> TypeGuard[float]:
    """Whether this is a real number that fp32 can hold: no bool, not NaN, not infinite."""
    number: Any = value
    return isinstance(value, Real) and not isinstance(value, bool) and bool(abs(number) <= LARGEST_FP32)


def check_tower(spec: Any, *sizes: str) -> None:
    """ValueError unless a transformer's sizes, depth, heads and epsilon make sense; `sizes` names further ones."""
    for name in ("width", "heads", "mlp_width", *sizes):
        check_whole(spec, name)
    check_whole(spec, "layers", high=MAX_LAYERS)
    if spec.width % spec.heads:
        raise ValueError(f"width {spec.width} does not divide into {spec.heads} heads.")
    check_eps(spec)


def check_eps(spec: Any) -> None:
    """ValueError unless norm_eps is a positive number."""
    if not is_finite(spec.norm_eps) or spec.norm_eps <= 0:
        raise ValueError(f"norm_eps must be a positive number, got {spec.norm_eps!r}.")


def check_pixels(spec: Any) -> None:
    """ValueError unless mean and std are of three channels, and a native picture is whole patches."""
    check_channels("mean", spec.mean)
    check_channels("std", spec.std)
    if min(spec.std) <= 0:
        raise ValueError(f"std must be positive, got {spec.std}.")
    if spec.image_size % spec.patch_size:
        raise ValueError(f"image_size {spec.image_size} is no multiple of patch_size {spec.patch_size}.")


def check_choices(spec: Any, choices: dict[str, tuple[str, ...]]) -> None:
    """ValueError unless each field says one of its valid words."""
    for name, valid in choices.items():
        if getattr(spec, name) not in valid:
            listed = " or ".join(map(repr, valid))
            raise ValueError(f"{name} must be {listed}, got {getattr(spec, name)!r}.")


def check_flags(spec: Any, *names: str) -> None:
    """ValueError unless each field is a bool."""
    for name in names:
        if type(getattr(spec, name)) is not bool:
            raise ValueError(f"{name} must be true or false, got {getattr(spec, name)!r}.")


def check_whole(spec: Any, name: str, low: int = 1, high: int = MAX_SIZE) -> None:
    """ValueError unless the field is a whole number from `low` to `high`; JSON gives strings, floats and null too."""
    value = getattr(spec, name)
    if type(value) is not int or not low <= value <= high:
        owner = type(spec).__name__
        raise ValueError(f"{owner}.{name} must be a whole number from {low} to {high}, got {value!r}.")


def check_positive(spec: Any, *names: str) -> None:
    """ValueError unless each field is a positive finite number."""
    for name in names:
        if not is_finite(getattr(spec, name)) or getattr(spec, name) <= 0:
            raise ValueError(f"{name} must be a positive number, got {getattr(spec, name)!r}")


def check_least_zero(spec: Any, *names: str) -> None:
    """ValueError unless each field is a finite number of at least 0."""
    for name in names:
        if not is_finite(getattr(spec, name)) or getattr(spec, name) < 0:
            raise ValueError(f"{name} must be a number of at least 0, got {getattr(spec, name)!r}")


def check_channels(name: str, values: object) -> None:
    """ValueError unless these are three finite numbers."""
    if not isinstance(values, tuple) or len(values) != 3 or not all(map(is_finite, values)):
        raise ValueError(f"{name} must hold three finite numbers, one a channel, got {values!r}.")
