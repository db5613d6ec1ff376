"""What the hint encoder reads: the adapter's output plus the masked scene's latents (paper 3.2, Fig. 4)."""

from __future__ import annotations

import jax
import numpy as np

from dtc_jax import presets
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose


def test_the_masked_scene_is_added_to_the_adapters_output() -> None:
    config = presets.test()
    model = DiffuseToChoose(config)
    shape = (2, config.latent_size, config.latent_size, config.vae.latent_channels)
    generator = np.random.default_rng(0)
    hint = generator.uniform(size=(2, config.image_size, config.image_size, 3)).astype(np.float32)
    masked_latents = generator.normal(size=shape).astype(np.float32)
    params = model.init(jax.random.key(0))
    # The adapter starts at zero, so that a new model's hint encoder reads the masked scene alone.
    np.testing.assert_array_equal(model.hint_inputs(params, hint, masked_latents), masked_latents)
    params = {"hint_adapter": jax.tree.map(lambda leaf: leaf + 0.1, params["hint_adapter"])}
    adapted = np.asarray(model.hint_inputs(params, hint, np.zeros(shape, np.float32)))
    assert np.abs(adapted).min() > 0
    np.testing.assert_allclose(model.hint_inputs(params, hint, masked_latents), adapted + masked_latents, rtol=1e-6)
