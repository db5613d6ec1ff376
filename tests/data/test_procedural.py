import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtc_jax.data import hints, procedural
from dtc_jax.data.procedural import patterns, silhouettes
from dtc_jax.data.procedural.colors import color_bin, contrasting, luminance
from dtc_jax.data.procedural.product import LOGO_MAX, LOGO_MIN
from dtc_jax.data.procedural.render import VISIBLE
from dtc_jax.data.procedural.scene import MASK_KINDS, MAX_TURN_DEGREES

SIZE, REFERENCE_SIZE, BATCH = 32, 40, 8


@pytest.fixture(scope="module")
def make_batch():
    function = functools.partial(
        procedural.sample_batch, batch_size=BATCH, size=SIZE, reference_size=REFERENCE_SIZE, vectorize=False
    )
    compiled = jax.jit(lambda key, start: function(key, start))
    return lambda start: jax.device_get(compiled(jax.random.key(3), jnp.uint32(start)))


@pytest.fixture(scope="module")
def products():
    """256 products and a hard variant of each."""

    @jax.jit
    @jax.vmap
    def draw(index):
        product = procedural.sample_product(procedural.product_key(index))
        return product, procedural.hard_variant(product, procedural.product_key(index, seed=1))

    return jax.device_get(draw(jnp.arange(256, dtype=jnp.uint32)))


@pytest.fixture(scope="module")
def scenes():
    return jax.device_get(
        jax.jit(jax.vmap(lambda index: procedural.sample_scene(procedural.product_key(index))))(jnp.arange(256))
    )


def test_a_batch_has_the_interface_of_every_batch(make_batch):
    batch = make_batch(0)
    for name, shape in {
        "scene": (BATCH, SIZE, SIZE, 3),
        "mask": (BATCH, SIZE, SIZE, 1),
        "reference": (BATCH, REFERENCE_SIZE, REFERENCE_SIZE, 3),
        "hint": (BATCH, SIZE, SIZE, 3),
    }.items():
        assert batch[name].shape == shape and batch[name].dtype == np.uint8, name
    assert batch["index"].dtype == np.uint32 and batch["index"].tolist() == list(range(BATCH))
    assert set(np.unique(batch["mask"])) == {0, 1}
    assert batch["labels"]["logo"].shape == (BATCH, 25)
    assert batch["labels"]["colors"].shape == (BATCH, 4)


def test_sample_i_is_the_same_in_whatever_batch_it_is_made(make_batch):
    first, second = make_batch(100), make_batch(103)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[3:], b[:-3]), first, second)
    assert len(np.unique(np.concatenate([first["product_id"], second["product_id"]]))) == BATCH + 3


def test_the_hint_is_the_one_that_the_host_would_stitch(make_batch):
    batch = make_batch(0)
    for mask, reference, hint in zip(batch["mask"], batch["reference"], batch["hint"], strict=True):
        expected = hints.stitch(reference, mask[..., 0], (SIZE, SIZE))
        assert np.abs(expected.astype(int) - hint).mean() < 0.6
        assert not hint[mask[..., 0] == 0].any()
        assert hint.any()


def test_references_keep_their_product_visible_on_white(make_batch):
    batch = make_batch(200)
    for reference, kind in zip(batch["reference"], batch["labels"]["silhouette"], strict=True):
        y0, x0, y1, x1 = hints.trim_bounds(reference)
        longest = max(y1 - y0, x1 - x0) / REFERENCE_SIZE
        assert 0.7 < longest <= 1.0
        assert longest < 1.0 or kind == silhouettes.POSTER


def test_ids_of_training_and_held_out_products_are_apart():
    def identity(held_out):
        one = functools.partial(procedural.sample_identity, seed=5, held_out=held_out)
        ids, keys, _ = jax.vmap(one)(jnp.arange(64, dtype=jnp.uint32))
        return np.asarray(ids), jax.random.key_data(keys)

    (training_ids, training_keys), (held_out_ids, held_out_keys) = identity(False), identity(True)
    assert (training_ids < procedural.HELD_OUT_START).all() and (held_out_ids >= procedural.HELD_OUT_START).all()
    assert (np.asarray(training_keys) != np.asarray(held_out_keys)).any(axis=-1).all()
    assert int(procedural.held_out_id(7)) == procedural.HELD_OUT_START + 7


def test_products_are_varied_and_within_their_ranges(products):
    product, _ = products
    assert set(np.unique(product.silhouette)) == set(range(len(silhouettes.NAMES)))
    assert set(np.unique(product.pattern)) == set(range(len(patterns.NAMES)))
    on = product.logo.sum(axis=(1, 2))
    assert on.min() >= LOGO_MIN and on.max() <= LOGO_MAX
    assert product.palette.min() >= 0 and product.palette.max() <= 0.95
    assert len(np.unique(jax.vmap(color_bin)(product.palette[:, 0]))) == 11
    gaps = np.abs(np.asarray(luminance(product.palette[:, 3]) - luminance(product.palette[:, 0])))
    assert gaps.min() > 0.35  # the ink stands out on the first colour


def test_hard_variants_differ_in_the_logo_only(products):
    product, variant = products
    for name in set(product._fields) - {"logo"}:
        np.testing.assert_array_equal(getattr(product, name), getattr(variant, name))
    assert (product.logo != variant.logo).sum(axis=(1, 2)).min() >= 8
    on = variant.logo.sum(axis=(1, 2))
    assert on.min() >= LOGO_MIN and on.max() <= LOGO_MAX


def test_poses_stay_in_the_picture_and_turns_within_twelve_degrees(scenes):
    turn = np.abs(np.rad2deg(scenes.turn))
    assert turn.max() <= MAX_TURN_DEGREES + 1e-3 and np.median(turn) < 5
    assert (scenes.center_x - scenes.scale).min() > 0 and (scenes.center_x + scenes.scale).max() < 1
    assert (scenes.base_y - 2 * scenes.scale).min() > 0 and scenes.base_y.max() < 1
    np.testing.assert_allclose(np.linalg.norm(scenes.light_direction, axis=1), 1, atol=1e-5)
    assert 0.4 < np.mean(scenes.mask_kind == MASK_KINDS.index("box")) < 0.6


def test_contrasting_moves_luminance_away():
    for own, other in [
        ((0.5, 0.5, 0.5), (0.5, 0.4, 0.5)),
        ((0.1, 0.1, 0.1), (0.2, 0.1, 0.1)),
        ((0.9,) * 3, (0.8,) * 3),
    ]:
        result = contrasting(jnp.array(own), jnp.array(other))
        assert abs(float(luminance(result) - luminance(jnp.array(other)))) > 0.35


@pytest.fixture(scope="module")
def pairs(products, scenes):
    """Eight products and their hard variants, each pair in one scene, with mask, alpha and naive paste."""

    def render(arguments):
        product, variant, scene = arguments
        image, alpha = procedural.render_scene(product, scene, SIZE)
        other, other_alpha = procedural.render_scene(variant, scene, SIZE)
        return image, alpha, other, other_alpha, procedural.scene_mask(alpha, scene)

    first = jax.tree.map(lambda leaf: jnp.asarray(leaf)[:BATCH], (*products, scenes))
    return jax.device_get(jax.jit(lambda a: jax.lax.map(render, a))(first))


def test_a_hard_variant_changes_nothing_but_the_product(pairs):
    image, alpha, other, other_alpha, mask = pairs
    np.testing.assert_array_equal(alpha, other_alpha)
    np.testing.assert_array_equal(image[~mask & (alpha == 0)], other[~mask & (alpha == 0)])
    inside = np.abs(image - other).mean(axis=-1)
    for index in range(BATCH):
        assert inside[index][alpha[index] > 0.9].max() > 0.1


def test_masks_hold_the_product_and_boxes_are_boxes(pairs, scenes):
    _, alpha, _, _, mask = pairs
    assert mask[alpha > VISIBLE].all()
    for index in range(BATCH):
        assert 0.05 < mask[index].mean() < 0.75
        product = alpha[index] > VISIBLE
        y, x = np.nonzero(product)
        box = np.zeros_like(product)
        box[y.min() : y.max() + 1, x.min() : x.max() + 1] = True
        expected = box if scenes.mask_kind[index] == MASK_KINDS.index("box") else product
        np.testing.assert_array_equal(mask[index], expected)


def test_naive_paste_keeps_the_scene_and_keys_out_white():
    scene = np.full((16, 16, 3), 100, np.uint8)
    mask = np.zeros((16, 16, 1), np.uint8)
    mask[4:12, 4:12] = 1
    scene[4:12, 4:12] = 255  # the truth inside the mask must not leak
    reference = np.full((12, 12, 3), 255, np.uint8)
    reference[2:10, 2:10] = 30
    reference[2:4, 2:4] = 255
    paste = np.asarray(procedural.naive_paste(jnp.asarray(scene), jnp.asarray(mask), jnp.asarray(reference)))
    np.testing.assert_allclose(paste[mask[..., 0] == 0], 100)
    np.testing.assert_allclose(paste[6:12, 6:12], 30, atol=1e-3)
    np.testing.assert_allclose(paste[4:6, 4:6], 100, atol=1e-3)
    error = procedural.masked_error(paste, np.where(mask, 30, paste), mask)
    np.testing.assert_allclose(error, 4 / 64 * 70**2, rtol=1e-4)


@pytest.mark.slow
def test_all_at_once_and_one_after_the_other_agree(make_batch):
    together = procedural.sample_batch(jax.random.key(3), 0, BATCH, SIZE, REFERENCE_SIZE, vectorize=True)
    together, alone = jax.device_get(together), make_batch(0)
    for name in ("mask", "index", "product_id"):
        np.testing.assert_array_equal(together[name], alone[name])
    for name in ("scene", "reference", "hint"):
        assert np.abs(together[name].astype(int) - alone[name]).mean() < 0.01


@pytest.mark.slow
def test_pictures_look_the_same_at_any_resolution():
    fine = jax.device_get(jax.jit(lambda: procedural.sample_batch(0, 0, 4, 64, 64, vectorize=False))())
    coarse = jax.device_get(jax.jit(lambda: procedural.sample_batch(0, 0, 4, 32, 32, vectorize=False))())
    for name in ("scene", "reference"):
        halved = fine[name].reshape(4, 32, 2, 32, 2, 3).astype(float).mean(axis=(2, 4))
        assert np.abs(halved - coarse[name]).mean() < 4
