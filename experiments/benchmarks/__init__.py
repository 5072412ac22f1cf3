"""Measurements of speed and memory; the figures are in ``README.md`` beside them."""
