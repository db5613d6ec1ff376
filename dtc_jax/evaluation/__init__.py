"""Measuring results: pixel metrics inside the mask, retrieval of the right product, the protocol beside them."""
