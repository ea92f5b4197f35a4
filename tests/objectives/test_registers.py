from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spatial_clip_jax.fusion.core import unit_length
from spatial_clip_jax.objectives import TeacherTokens, registers
from spatial_clip_jax.objectives.registers import absorption, separation
from spatial_clip_jax.objectives.spurious import Attention, clean_tokens

RNG = np.random.default_rng(0)
B, P, G, C, R = 2, 2, 4, 6, 12
STUDENT, RING = RNG.normal(size=(B, G, G, C)) + 0.4, RNG.normal(size=(B, R, C)) + 0.4
CORNERS = RNG.uniform(0, 0.4, (B, P, 2))
BOXES = np.concatenate([CORNERS, CORNERS + RNG.uniform(0.4, 0.6, (B, P, 2))], -1)
TEACHER = {
    "foreground": RNG.normal(size=(B, P, G, G, C)) + 0.4,
    "background": RNG.normal(size=(B, P, 8, C)),
    "full": RNG.normal(size=(B, G, G, C)) + 0.4,
    "reference": RNG.normal(size=(16, C)),
}
ATTENTION = tuple(RNG.normal(size=(2, 2, B * P, G * G, 8)))
KEY = jax.random.key(3)
LIVELY = np.arange(C) != 2
normalize = partial(torch.nn.functional.normalize, dim=-1)


@partial(jax.jit, static_argnames=("matching", "uniformity"))
def loss_and_gradients(student, ring, boxes, teacher, channels, **settings):
    def loss(student, ring):
        return registers(student, ring, boxes, teacher, KEY, channels=channels, **settings)

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(student, ring)


def single(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def run(student=STUDENT, ring=RING, teacher=TEACHER, channels=LIVELY, **settings):
    attention = Attention(*single(ATTENTION)) if settings["matching"] else None
    tokens = TeacherTokens(**single(teacher), attention=attention)
    return loss_and_gradients(*single((student, ring, BOXES)), tokens, jnp.asarray(channels), **settings)


def hold(values, floor):
    return torch.where(values < floor, values.detach(), values)


def torch_absorption(ring, student, spurious, floor):
    """(crops, tokens, width) each, unit length; register by register."""
    near, spread, weak = [], [], []
    for crop_ring, crop, bank in zip(ring, student.detach(), spurious, strict=True):
        chosen = [int((bank @ register).argmax()) for register in crop_ring]
        for place, register in enumerate(crop_ring):
            near.append(register @ bank[chosen[place]])
            row = torch.stack([register @ bank[index] for index in chosen])
            spread.append(torch.logsumexp(torch.where(row < floor, floor + 0.1, row) / 0.2, 0))
        likest = (crop_ring @ crop.T).amax(1).sort(descending=True).values[: -(-len(crop_ring) // 10)]
        weak += [value for value in likest if value > floor]
    mean_weak = torch.stack(weak).mean() if weak else 0.0
    return -torch.stack(near).mean() / 0.2 - 0.2 * mean_weak / 0.2 + torch.stack(spread).mean()


def torch_registers(torch_roi, student, ring, clean, spurious, matching, uniformity):
    """The sum of the three terms, from the filters' verdict and examples."""
    lively = torch.tensor(LIVELY).double()
    foreground, full = (normalize(torch.tensor(TEACHER[name]) * lively) for name in ("foreground", "full"))
    inner, ring = normalize(student * lively), normalize(ring * lively)
    crops = normalize(torch_roi(inner, torch.tensor(BOXES), G)).reshape(B * P, G * G, C)
    foreground = foreground.reshape(B * P, G * G, C)
    full = full.flatten(1, 2).repeat_interleave(P, 0)
    targets = foreground
    if matching:
        targets = torch.stack([f[(t @ f.T).argmax(1)] for t, f in zip(foreground, full, strict=True)])
    kept = targets[clean]
    floor = (kept * kept.flip(0)).sum(-1).mean()
    pool = full if matching else foreground
    contrast = []
    for q, i in clean.nonzero().tolist():
        negatives = hold(pool[q] @ crops[q, i], floor)
        contrast.append(uniformity * torch.logsumexp(negatives / 0.2, 0) - crops[q, i] @ targets[q, i] / 0.2)
    apart = torch.logsumexp(hold(inner.flatten(1, 2) @ ring.transpose(1, 2), 0.55) / 0.2, -1).mean()
    bank = torch.stack([f[(s @ f.T).argmax(1)] for s, f in zip(spurious, full, strict=True)])
    absorbed = torch_absorption(ring.repeat_interleave(P, 0), crops, bank, floor)
    return torch.stack(contrast).mean() + apart + 0.1 * absorbed, targets


def verdict(targets, attention):
    """What the filters say, with registers and teacher normalised here."""
    lively = {name: np.where(LIVELY, value, 0) for name, value in TEACHER.items()}
    tokens = {name: unit_length(jnp.asarray(value, jnp.float32)) for name, value in lively.items()}
    ring = unit_length(jnp.asarray(np.where(LIVELY, RING, 0), jnp.float32)).repeat(P, axis=0)
    foreground, background = (tokens[name].reshape(B * P, -1, C) for name in ("foreground", "background"))
    targets = jnp.asarray(targets, jnp.float32)
    judge = jax.jit(clean_tokens)
    clean, spurious = judge(KEY, foreground, background, tokens["reference"], targets, ring, attention)
    return torch.tensor(np.asarray(clean)), torch.tensor(np.asarray(spurious, np.float64))


@pytest.mark.parametrize(("matching", "uniformity"), [(True, 0.3), (False, 1.0)])
def test_value_and_gradients_equal_torch(torch_roi, matching, uniformity):
    student, ring = (torch.tensor(x, requires_grad=True) for x in (STUDENT, RING))
    whole, examples = torch.ones(B * P, G * G, dtype=torch.bool), torch.ones(B * P, 2 * R, C).double()
    _, targets = torch_registers(torch_roi, student, ring, whole, examples, matching, uniformity)
    clean, spurious = verdict(targets.numpy(), Attention(*single(ATTENTION)) if matching else None)
    expected, _ = torch_registers(torch_roi, student, ring, clean, spurious, matching, uniformity)
    expected.backward()
    (loss, parts), gradients = run(matching=matching, uniformity=uniformity)
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    for gradient, tensor in zip(gradients, (student, ring), strict=True):
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), atol=5e-6)
        assert np.abs(gradient).max() > 1e-3
    assert 0 < parts["clean_fraction"] == clean.double().mean().item() < 1
    total = parts["register_contrast"] + parts["register_separation"] + 0.1 * parts["register_absorption"]
    np.testing.assert_allclose(total, loss, rtol=1e-6)


@pytest.mark.parametrize("floor", [-0.2, 0.3, 2.0])
def test_absorption_equals_torch_whatever_the_floor(floor):
    ring, student, spurious = (RNG.normal(size=(2, n, 5)) for n in (12, 7, 24))
    tensors = [torch.tensor(x, requires_grad=True) for x in (ring, student, spurious)]
    expected = torch_absorption(*(normalize(x) for x in tensors), torch.tensor(floor))
    expected.backward()
    loss, gradients = absorption_and_gradients(*single((ring, student, spurious)), jnp.float32(floor))
    np.testing.assert_allclose(loss, expected.item(), atol=3e-6)
    np.testing.assert_allclose(gradients[0], tensors[0].grad.numpy(), atol=2e-6)
    assert not np.asarray(gradients[1]).any()


@jax.jit
def absorption_and_gradients(ring, student, spurious, floor):
    def loss(ring, student):
        return absorption(unit_length(ring), unit_length(student), unit_length(spurious), floor)

    return jax.value_and_grad(loss, argnums=(0, 1))(ring, student)


def test_only_what_is_not_yet_apart_is_pushed_apart():
    tokens, ring = np.eye(4)[None, :2], np.stack([np.eye(4)[0] * 0.9, np.eye(4)[3]])[None]
    gradient = jax.jit(jax.grad(separation))(*single((tokens, ring)))[0]
    assert np.abs(gradient[0]).max() > 0.1 and not gradient[1].any()


def test_shuffled_targets_raise_the_contrast(torch_roi):
    maps = TEACHER["full"] / np.linalg.norm(TEACHER["full"], axis=-1, keepdims=True)
    crops = torch_roi(torch.tensor(maps), torch.tensor(BOXES), G).numpy()
    shuffled = crops.reshape(B, P, -1, C)[:, :, RNG.permutation(G * G)].reshape(crops.shape)
    matched, mixed = (
        run(student=maps, teacher=TEACHER | {"foreground": tokens}, matching=False, uniformity=1.0)[0][1]
        for tokens in (crops, shuffled)
    )
    assert matched["register_contrast"] + 1 < mixed["register_contrast"]
    assert matched["clean_cosine"] > 0.99 > mixed["clean_cosine"]


def test_lazy_channels_change_nothing_whatever_stands_in_them():
    (loss, parts), gradients = run(matching=True, uniformity=0.3)
    dirty = {name: np.where(LIVELY, value, np.nan) for name, value in TEACHER.items()}
    student, ring = (np.where(LIVELY, value, np.nan) for value in (STUDENT, RING))
    (other_loss, other_parts), others = run(student, ring, dirty, matching=True, uniformity=0.3)
    assert other_loss == loss and other_parts == parts
    for gradient, other in zip(gradients, others, strict=True):
        np.testing.assert_array_equal(other, gradient)
        assert not np.asarray(gradient)[..., ~LIVELY].any()
    assert run(channels=np.ones(C, bool), matching=True, uniformity=0.3)[0][0] != loss


def test_null_vectors_have_finite_gradients():
    nothing = {name: np.zeros_like(value) for name, value in TEACHER.items()}
    for student, ring, teacher in (
        (0 * STUDENT, RING, TEACHER),
        (STUDENT, 0 * RING, TEACHER),
        (STUDENT, RING, nothing),
    ):
        (loss, _), gradients = run(student, ring, teacher, matching=True, uniformity=0.3)
        assert np.isfinite(loss) and all(np.isfinite(gradient).all() for gradient in gradients)
