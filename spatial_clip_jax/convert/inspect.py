"""What is in a checkpoint, told from its names and shapes: for people who have a file and no geometry."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spatial_clip_jax.convert import tables
from spatial_clip_jax.convert.families import registry
from spatial_clip_jax.convert.files import headers
from spatial_clip_jax.convert.source import Source, files_of, find_source
from spatial_clip_jax.models.geometries import GEOMETRIES
from spatial_clip_jax.models.spec import ClipSpec

Shapes = dict[str, tables.Shape]
MIN_KNOWN = 0.5  # of the keys: below, the best family is none


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What was seen.

    title: the kind of file, or None when none knows half of its keys. sizes: what the shapes say, by the spec's field
    ("vision.width"). unknown: keys that hold nothing known. nearest: the named geometry that agrees in most sizes, and
    where it does not. spec: what the configuration says, where there is one; problem: why it cannot be used.
    """

    title: str | None
    tensors: int
    parameters: int
    sizes: dict[str, int]
    unknown: list[str]
    nearest: tuple[str, list[str]]
    spec: ClipSpec | None
    problem: str | None


def inspect_checkpoint(path: str | Path) -> Inspection:
    """Looks at a folder or file; ValueError or FileNotFoundError only where there are no weights to look at."""
    found = _source(path)
    source, problem = (found, None) if isinstance(found, Source) else (None, str(found))
    shapes = headers(source.files if source else files_of(Path(path)))
    naming = source.naming if source else registry.nearest(list(shapes), registry.NAMINGS)
    unknown = [key for key in shapes if not tables.to_ours(key, naming.table) and not naming.ignores(key)]
    sizes = sizes_of(shapes, naming)
    return Inspection(
        title=naming.title if naming.known(list(shapes)) >= MIN_KNOWN else None,
        tensors=len(shapes),
        parameters=sum(math.prod(shape) for shape in shapes.values()),
        sizes=sizes,
        unknown=unknown,
        nearest=nearest_geometry(sizes),
        spec=source.spec if source else None,
        problem=problem,
    )


def sizes_of(shapes: Shapes, naming: tables.Naming) -> dict[str, int]:
    """The sizes that the shapes say, by the spec's field."""
    ours: Shapes = {}
    for key, shape in shapes.items():
        for piece in tables.to_ours(key, naming.table):
            ours[piece.name] = tables.shape_to_ours(shape, piece.layout, piece.pieces)
    sizes = {**_vision_sizes(ours), **_tower_sizes(ours, "vision"), **_text_sizes(ours), **_tower_sizes(ours, "text")}
    return {name: size for name, size in sizes.items() if size}


def nearest_geometry(sizes: Mapping[str, int]) -> tuple[str, list[str]]:
    """(name in GEOMETRIES, where it differs) of the geometry that agrees in most of the sizes."""
    differences = {name: _differences(sizes, spec) for name, spec in GEOMETRIES.items()}
    best = min(differences, key=lambda name: len(differences[name]))
    return best, differences[best]


def report(found: Inspection) -> str:
    """The inspection as lines for a terminal."""
    known = found.title or "no family that is known"
    lines = [f"{known}: {found.tensors} tensors, {found.parameters:,} numbers"]
    lines += [f"  {name} = {size}" for name, size in found.sizes.items()]
    if found.spec is not None:
        lines += [f"  {line}" for line in _configured(found.spec)]
    else:
        lines.append("  heads, activation and preprocessing: not said by weights alone")
    name, differences = found.nearest
    lines.append(f"nearest named geometry: {name}" + (f" (differs: {'; '.join(differences)})" if differences else ""))
    if found.unknown:
        shown = ", ".join(found.unknown[:10]) + (", ..." if len(found.unknown) > 10 else "")
        lines.append(f"not understood: {len(found.unknown)} tensors: {shown}")
    return "\n".join(lines + ([f"to load it: {found.problem}"] if found.problem else []))


def _configured(spec: ClipSpec) -> list[str]:
    """What the configuration adds to the sizes: heads, activation, and what is not CLIP's default."""
    lines = []
    for tower, part in (("vision", spec.vision), ("text", spec.text)):
        for field in dataclasses.fields(part) if part is not None else ():
            value, always = getattr(part, field.name), field.name in ("heads", "activation")
            if always or (field.default is not dataclasses.MISSING and value != field.default):
                lines.append(f"{tower}.{field.name} = {value}")
    return lines


def _source(path: str | Path) -> Source | Exception:
    try:
        return find_source(path)
    except (ValueError, FileNotFoundError) as error:
        return error


def _vision_sizes(ours: Shapes) -> dict[str, int]:
    kernel, table = ours.get("vision/patch_embedding/kernel"), ours.get("vision/position_embedding")
    if kernel is None:
        return {}
    places = 0 if table is None else table[0] - ("vision/class_embedding" in ours)
    projection = ours.get("vision/projection/kernel")
    return {
        "embed_dim": projection[1] if projection else kernel[3],
        "vision.patch_size": kernel[0],
        "vision.image_size": math.isqrt(places) * kernel[0],
        "vision.width": kernel[3],
    }


def _text_sizes(ours: Shapes) -> dict[str, int]:
    tokens, table = ours.get("text/token_embedding"), ours.get("text/position_embedding")
    sizes = {} if tokens is None else {"text.vocab_size": tokens[0], "text.width": tokens[1]}
    return sizes | ({} if table is None else {"text.context_length": table[0] - ("text/class_embedding" in ours)})


def _tower_sizes(ours: Shapes, tower: str) -> dict[str, int]:
    blocks = [path.split("/")[2] for path in ours if path.startswith(f"{tower}/blocks/")]
    first = ours.get(f"{tower}/blocks/0/mlp/fc1/kernel") or ours.get(f"{tower}/blocks/0/mlp/gate/kernel")
    sizes = {f"{tower}.layers": 1 + max(map(int, blocks))} if blocks else {}
    return sizes | ({f"{tower}.mlp_width": first[1]} if first else {})


def _differences(sizes: Mapping[str, int], spec: ClipSpec) -> list[str]:
    differences = []
    for name, size in sizes.items():
        theirs: Any = spec
        for part in name.split("."):
            theirs = getattr(theirs, part, None)
        differences += [] if theirs == size else [f"{name} {theirs} there"]
    return differences
