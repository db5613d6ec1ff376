"""The networks, as flax.linen modules over plain nested dicts. They know nothing of files, devices or training."""
