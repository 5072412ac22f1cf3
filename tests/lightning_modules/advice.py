"""Advice of Lightning that small fits do not take; each list is the ``pytestmark`` of a file of tests."""

from __future__ import annotations

import pytest

# more worker processes for any data set, and a shorter logging interval for few batches
FEW_BATCHES = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero"),
]
# also validation, where batches are handed over without any to validate on
NO_VALIDATION = [
    *FEW_BATCHES,
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]
# also a loss, where a stage is fitted in closed form
NO_LOSS = [*FEW_BATCHES, pytest.mark.filterwarnings("ignore:`training_step` returned `None`")]
