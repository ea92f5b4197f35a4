"""Boxes that come with pictures: where the box says, there is what it is of, whatever the stream takes of a picture."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from spatial_clip_jax.data.boxes import Regions, drawn_regions
from spatial_clip_jax.data.scenes.records import encoded
from spatial_clip_jax.data.sources import open_source
from spatial_clip_jax.data.stream import PictureStream

# Pictures of 60 x 40 and 40 x 60 with bright blocks on black, x, y, width and height; the colour channel is the label.
SIDES = ((60, 40), (40, 60))
BLOCKS = (((12, 4, 16, 20), (30, 20, 18, 12)), ((2, 12, 20, 16), (24, 30, 12, 18)))
NOUNS = ("red thing", "green thing")


def picture(number: int) -> np.ndarray:
    width, height = SIDES[number]
    pixels = np.zeros((height, width, 3), np.uint8)
    for label, (x, y, w, h) in enumerate(BLOCKS[number]):
        pixels[y : y + h, x : x + w, label] = 240
    return pixels


def coco(**changes: Any) -> dict[str, Any]:
    """The pictures' boxes in COCO's format; category ids are not their places."""
    images = [dict(id=7 + i, file_name=f"in/{i}.png", width=w, height=h) for i, (w, h) in enumerate(SIDES)]
    boxes = [
        dict(image_id=7 + i, bbox=list(box), category_id=(90, 3)[label])
        for i, blocks in enumerate(BLOCKS)
        for label, box in enumerate(blocks)
    ]
    boxes.append(dict(image_id=7, bbox=[0, 0, 60, 40], category_id=90, iscrowd=1))
    named = [dict(id=90, name=NOUNS[0]), dict(id=3, name=NOUNS[1])]
    return dict(images=images, annotations=boxes, categories=named) | changes


def annotated(bbox: list[Any], category: int = 90) -> dict[str, Any]:
    return coco(annotations=[dict(image_id=7, bbox=bbox, category_id=category)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("boxed")
    (folder / "in").mkdir()
    for number in range(2):
        (folder / "in" / f"{number}.png").write_bytes(encoded(picture(number), "PNG").getvalue())
    (folder / "boxes.json").write_text(json.dumps(coco()))
    return folder


class Blocks(tfds.core.GeneratorBasedBuilder):
    """The same pictures with boxes in TFDS's own form."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        boxes = {"bbox": tfds.features.BBoxFeature(), "label": tfds.features.ClassLabel(names=NOUNS), "id": np.int64}
        image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
        features = {"image": image, "objects": tfds.features.Sequence(boxes)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager: object) -> dict:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict]]:
        for number, (width, height) in enumerate(SIDES):
            objects = [
                dict(bbox=tfds.features.BBox(y / height, x / width, (y + h) / height, (x + w) / width), label=i, id=i)
                for i, (x, y, w, h) in enumerate(BLOCKS[number])
            ]
            objects.append(dict(bbox=tfds.features.BBox(0.0, 0.0, 1.0, 1.0), label=-1, id=9))
            yield number, {"image": encoded(picture(number), "PNG"), "objects": objects}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    builder = Blocks(data_dir=str(tmp_path_factory.mktemp("tfds")), file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


@pytest.mark.parametrize("kind", ["folder", "tfds"])
@pytest.mark.parametrize(("size", "resize"), [((40, 40), "crop"), ((80, 80), "crop"), ((64, 48), "stretch")])
def test_boxes_lie_on_what_they_are_of(folder: Path, dataset: Path, kind: str, size: tuple[int, int], resize: str):
    given = {
        "folder": dict(path=folder, boxes=str(folder / "boxes.json")),
        "tfds": dict(path=dataset, split="train", boxes="objects/bbox", nouns="objects/label"),
    }[kind]
    source = open_source(dict(kind=kind, **given))
    assert source.annotations is not None and source.annotations.nouns == NOUNS
    batch = next(PictureStream(source, 2, size, 0, resize=resize, boxes=3))
    assert batch["boxes"].shape == (2, 3, 4) and batch["boxes"].dtype == np.float32
    np.testing.assert_array_equal(batch["valid"], [[True, True, False]] * 2)
    np.testing.assert_array_equal(batch["boxes"][:, 2], [[0, 0, 1, 1]] * 2)
    for image, boxes, labels in zip(batch["image"], batch["boxes"], batch["labels"], strict=True):
        assert sorted(labels[:2]) == [0, 1]
        for box, label in zip(boxes[:2], labels[:2], strict=True):
            assert overlap(image[..., label] > 120, box) > 0.9


def overlap(mask: np.ndarray, box: np.ndarray) -> float:
    """Intersection over union of a mask and a box in [0, 1]."""
    rows, columns = ((np.arange(n) + 0.5) / n for n in mask.shape)
    inside = ((rows > box[1]) & (rows < box[3]))[:, None] & ((columns > box[0]) & (columns < box[2]))
    return (mask & inside).sum() / (mask | inside).sum()


def test_boxes_are_drawn_by_place_in_the_stream(folder: Path):
    """Other boxes at other visits, the same ones after a resume."""

    def stream() -> PictureStream:
        source = open_source(dict(kind="folder", path=folder, boxes=str(folder / "boxes.json")))
        return PictureStream(source, 2, (40, 40), 0, boxes=1)

    first, resumed = stream(), stream()
    seen = [tuple(batch["labels"][np.argsort(batch["index"]), 0]) for batch in islice(first, 12)]
    assert len(set(seen)) > 1
    resumed.set_state(first.get_state())
    for expected, found in islice(zip(first, resumed, strict=True), 4):
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)


def test_small_boxes_and_those_beyond_the_window_are_left_out():
    window = (0.25, 0.0, 0.75, 1.0)
    boxes = [
        [0.30, 0.2, 0.60, 0.8],  # within
        [0.00, 0.0, 0.45, 1.0],  # 0.2 of 0.45 wide is seen: less than half
        [0.20, 0.5, 0.40, 0.9],  # 0.15 of 0.2 is
        [0.80, 0.0, 1.00, 0.5],  # beyond
        [0.50, 0.5, 0.52, 0.52],  # too small
        [0.60, 0.5, 0.50, 0.9],  # no width
        [0.70, 0.9, 0.30, 0.1],  # neither width nor height
        [np.nan, 0.1, 0.60, 0.9],
    ]
    regions = Regions(np.array(boxes, np.float32), np.arange(8, dtype=np.int32))
    drawn = drawn_regions(regions, window, 0.01, 4, (0,))
    order = np.argsort(drawn["labels"][:2])
    assert drawn["valid"].tolist() == [True, True, False, False] and drawn["labels"][:2][order].tolist() == [0, 2]
    np.testing.assert_allclose(drawn["boxes"][:2][order], [[0.1, 0.2, 0.7, 0.8], [0.0, 0.5, 0.3, 0.9]], atol=1e-6)


def test_pictures_without_boxes_have_none(folder: Path, tmp_path: Path):
    (tmp_path / "boxes.json").write_text(json.dumps(coco(annotations=coco()["annotations"][:2])))
    source = open_source(dict(kind="folder", path=folder, boxes=str(tmp_path / "boxes.json")))
    batch = next(PictureStream(source, 2, (40, 40), 0, boxes=2))
    assert batch["valid"][np.argsort(batch["index"])].tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is no JSON"),
        ("[]", "expected an object with 'images' and 'annotations'"),
        ("[" * 100_000, "is no JSON"),
        (
            coco(images=[dict(id=7, file_name="in/0.png", width=0, height=9)]),
            r"not in COCO's format: images\[0\]: .*width and height must be positive numbers, got 0 and 9",
        ),
        (coco(images=[dict(id=7, width=9, height=9)]), r"images\[0\]: KeyError: 'file_name'"),
        (coco(images=[]), r"annotations\[0\]: .*image_id is 7, and no image has that id"),
        (annotated([1, 2, 3]), r"annotations\[0\]: ValueError"),
        (annotated([1, 2, 3, None]), r"annotations\[0\]: TypeError"),
        (annotated([1, 2, 3, 4], 5), r"annotations\[0\]: .*category_id is 5, and no category has that id"),
        (coco(categories=[dict(id=90, name=3)]), r"categories\[0\]: .*its name must be a word, got 3"),
        (coco(categories=[dict(id=90, name=" ")]), r"categories\[0\]: .*its name must be a word, got ' '"),
        (annotated([0.1, 0.2, 0.3, 0.4]), "none of 1 boxes is at least a pixel of its picture; a bbox is x, y, width"),
        (annotated([70, 5, 9, 9]), "none of 1 boxes"),
        (annotated([5, 5, -3, 9]), "none of 1 boxes"),
        (annotated([float("nan"), 5, 9, 9]), "none of 1 boxes"),
        (annotated([5, 5, float("inf"), float("nan")]), "none of 1 boxes"),
        (
            coco(annotations=[]),
            "has boxes for none of the pictures: it names no picture with boxes, expected 'in/0.png'",
        ),
    ],
)
def test_faults_of_a_file_are_named(folder: Path, tmp_path: Path, content: Any, says: str):
    file = tmp_path / "boxes.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=says):
        open_source(dict(kind="folder", path=folder, boxes=str(file)))


def test_boxes_that_are_left_out_or_cut_are_counted(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    file = tmp_path / "boxes.json"
    beyond = [dict(image_id=7, bbox=bbox, category_id=90) for bbox in ([50, 5, 30, 20], [90, 5, 9, 9], [0, 0, 0.5, 9])]
    file.write_text(json.dumps(coco(annotations=coco()["annotations"] + beyond)))
    source = open_source(dict(kind="folder", path=folder, boxes=str(file)))
    assert "of 7 boxes 2 are no part of their pictures and are left out, 1 reach beyond them" in caplog.text
    assert source.annotations is not None and len(source.annotations.of({"name": "in/0.png"}).boxes) == 3
    caplog.clear()
    open_source(dict(kind="folder", path=folder, boxes=str(folder / "boxes.json")))
    assert "boxes" not in caplog.text


def test_what_is_not_there_is_named(folder: Path, dataset: Path):
    with pytest.raises(FileNotFoundError, match="no file .*none.json"):
        open_source(dict(kind="folder", path=folder, boxes=str(folder / "none.json")))
    for feature in ("objects/id", "bbox"):
        with pytest.raises(ValueError, match=rf"data.boxes='{feature}' is no BBoxFeature .*\['objects/bbox'\]"):
            open_source(dict(kind="tfds", path=dataset, split="train", boxes=feature))
    with pytest.raises(ValueError, match=r"data.nouns='objects/id' is no ClassLabel .*\['objects/label'\]"):
        open_source(dict(kind="tfds", path=dataset, split="train", boxes="objects/bbox", nouns="objects/id"))
    with pytest.raises(ValueError, match="give data.boxes, its feature, too"):
        open_source(dict(kind="tfds", path=dataset, split="train", nouns="objects/label"))
    with pytest.raises(ValueError, match="no boxes with the pictures; name them by data.boxes"):
        PictureStream(open_source(dict(kind="folder", path=folder)), 2, (40, 40), 0, boxes=1)
