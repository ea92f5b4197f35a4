import numpy as np
import pytest

from spatial_clip_jax.evaluate.benchmark import (
    METRICS,
    SCORED,
    Settings,
    evaluate_row,
    relation_by_global_embedding,
    zero_shot_top1,
)
from spatial_clip_jax.evaluate.metrics import box_iou, picture_iou, region_embeddings
from spatial_clip_jax.evaluate.questions import ask
from spatial_clip_jax.tasks.ground import ground
from spatial_clip_jax.tasks.heatmap import similarity
from spatial_clip_jax.tasks.localize import localize
from spatial_clip_jax.tasks.relate import relate
from spatial_clip_jax.tasks.segment import segment
from tests.evaluate.world import (
    PAIRS,
    encode_text,
    noise_row,
    one_object_pictures,
    perfect_row,
    single,
    street,
)


def test_a_perfect_row_answers_everything(questions, bank):
    settings = Settings(generic=False, box_threshold=0.6, segment_threshold=0.5)
    scores = evaluate_row(perfect_row(questions.pictures), questions, bank, settings, batch_size=2)
    assert set(scores) == {*SCORED} == {*METRICS, "region_top1_seen", "region_top1_unseen"} - {"zero_shot_top1"}
    assert scores.pop("miou") > 0.75  # tokens are coarser than pixels
    assert scores == dict.fromkeys(scores, 1.0)


def test_a_noise_row_answers_little(questions, bank):
    scores = evaluate_row(noise_row(), questions, bank, Settings(), batch_size=4)
    assert scores["region_top1"] < 0.5 and scores["box_iou50"] < 0.3 and scores["miou"] < 0.4


@pytest.mark.parametrize("settings", [Settings(), Settings(2.0, False, 0.7, 0.05)])
def test_scores_equal_answering_picture_by_picture(questions, bank, settings):
    """The same questions put to the task functions one picture and one phrase at a time."""
    row, size = noise_row(), questions.size
    maps = row.dense(questions.images, settings.scale)  # noise is drawn from the whole batch
    generic = bank.generic if settings.generic else None
    hits: dict[str, list[float]] = {name: [] for name in METRICS[:-1]}
    for number, (shown, dense) in enumerate(zip(questions.pictures, maps, strict=True)):
        places, ours = {}, [q for q in questions.objects if q.picture == number]
        for q in ours:
            heat = similarity(dense, bank.embed([q.phrase]), generic=generic)
            places[q.phrase] = (place,) = localize(heat, size, settings.box_threshold)
            if q.unambiguous:
                x, y = place.point
                hits["pointing"].append(questions.truth[number][int(y), int(x)] == q.label)
                hits["box_iou50"].append(box_iou(place.boxes[:1], q.box[None])[0, 0] >= 0.5)
        heat = similarity(dense, bank.embed([q.phrase for q in ours]), generic=generic)
        found = segment(heat, size, threshold=settings.segment_threshold)
        hits["miou"].append(picture_iou(found.labels, questions.truth[number], len(ours)))
        for q in (q for q in questions.regions if q.picture == number):
            vector = region_embeddings(dense, (shown.instances == q.instance)[None])[0]
            hits["region_top1"].append(PAIRS[int((bank.embed(PAIRS) @ vector).argmax())] == q.phrase)
        for q in (q for q in questions.relations if questions.objects[q.first].picture == number):
            (first,), (second,) = (places[questions.objects[i].phrase] for i in (q.first, q.second))
            hits["relation_accuracy"].append(relate(first, second, q.relation).probability > 0.5)
        for q in (q for q in questions.parts if q.picture == number):
            phrase = f"the {q.query.target} of the {q.query.context}"
            x, y = ground(phrase, dense, size, bank.embed, generic=generic).point
            hits["part_pointing"].append(shown.parts[int(y), int(x)] == q.part)
    scores = evaluate_row(row, questions, bank, settings, batch_size=len(maps))
    for name, values in hits.items():
        assert scores[name] == pytest.approx(np.mean(values)), name


def test_metrics_without_a_question_are_left_out(bank):
    questions = ask([single("red star", 4)])
    scores = evaluate_row(perfect_row(questions.pictures), questions, bank, Settings())
    assert "part_pointing" not in scores and "relation_accuracy" not in scores and "pointing" in scores


def test_zero_shot_tells_seen_pairs_from_unseen(bank):
    pictures = one_object_pictures()
    assert set(zero_shot_top1(perfect_row(pictures).embed_image, pictures, bank).values()) == {1.0}

    def calls_stars_circles(images: np.ndarray) -> np.ndarray:
        names = [pictures[int(image[0, 0, 0]) - 10].objects[0].phrase for image in images]
        return encode_text([name.replace("star", "circle") for name in names])

    found = zero_shot_top1(calls_stars_circles, pictures, bank, batch_size=4)
    assert found == {
        "zero_shot_top1": pytest.approx(2 / 3),
        "zero_shot_top1_seen": 1.0,
        "zero_shot_top1_unseen": 0.0,
    }


def test_zero_shot_wants_one_object_a_picture(bank):
    with pytest.raises(ValueError, match="one object"):
        zero_shot_top1(noise_row().embed_image, [street(1)], bank)


def test_relations_by_the_global_embedding():
    """An embedding of the true sentence is always right; one of the opposite always wrong."""
    questions = ask([street(1)])
    wordings = [
        f"a {questions.objects[q.first].phrase} {q.relation} {questions.objects[q.second].phrase}"
        for q in questions.relations[:1]
    ]
    questions = type(questions)(**{**vars(questions), "relations": questions.relations[:1]})

    def ask_with(sentence: str) -> float:
        return relation_by_global_embedding(
            lambda images: np.repeat(encode_text([sentence]), len(images), 0), encode_text, questions
        )

    assert ask_with(wordings[0]) == 1.0
    assert ask_with(wordings[0].replace("left", "right")) == 0.0
