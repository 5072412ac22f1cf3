"""``python -m experiments`` is ``neuroalign``."""

from experiments.cli import main

main()
