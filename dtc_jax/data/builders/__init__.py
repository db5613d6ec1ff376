"""Builders of prepared data sets: from VITON-HD's folders, and from a catalogue's manifest.

A *source* (`source.py`, `vitonhd_source.py`, `manifest_source.py`) says what cases there are and opens one; it knows no
TFDS and can be sent to other processes. `parts.py` makes records of a source in parallel and keeps them where a killed
build finds them again. `vitonhd.py` and `product_pairs.py` are the TFDS builders round them.
"""
