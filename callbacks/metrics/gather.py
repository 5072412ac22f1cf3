"""Gathering: outputs of all processes, once each, by person and in the order of ``row``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, distributed

from contracts import PADDING, ContractError, Output


class Outputs:
    """Collects entries of outputs over batches and processes.

    People may differ in the shape of their signals, and a process may see no batch of a person or none at
    all, so processes exchange whole objects instead of tensors of one shape.

    Args:
        names: Entries to collect; ``row`` and ``subject`` must be among them. None collects all that the batches have.
    """

    def __init__(self, names: Sequence[str] | None = None) -> None:
        self.names = None if names is None else tuple(names)
        self._batches: list[Output] = []

    def update(self, outputs: Mapping[str, Tensor]) -> None:
        """Add the entries of one batch, ``(B, ...)`` each."""
        names = outputs if self.names is None else self.names
        self._batches.append({name: outputs[name].detach().cpu() for name in names})

    def compute(self) -> dict[int, Output]:
        """Return by subject number the entries ``(n, ...)`` of all batches and processes.

        They are sorted by ``row``, without padding, and every row stands once. Collective: every process
        must call it.

        Raises:
            ContractError: Batches of a person differ in their entries.
        """
        batches = self._batches
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            gathered: list[list[Output]] = [[] for _ in range(distributed.get_world_size())]
            distributed.all_gather_object(gathered, self._batches)
            batches = [batch for rank in gathered for batch in rank]
        people: dict[int, list[Output]] = {}
        for batch in batches:
            for person in batch["subject"].unique().tolist():
                mine = (batch["subject"] == person) & (batch["row"] != PADDING)
                if mine.any():
                    people.setdefault(person, []).append({name: value[mine] for name, value in batch.items()})
        return {person: _in_order(parts) for person, parts in sorted(people.items())}


def _in_order(parts: Sequence[Output]) -> Output:
    for part in parts:
        if part.keys() != parts[0].keys():
            raise ContractError(
                f"some batches have {', '.join(sorted(part.keys() ^ parts[0].keys()))} and others do not; a step must "
                "return the same entries for every batch"
            )
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    row, order = joined["row"].sort(stable=True)
    first = torch.ones_like(row, dtype=torch.bool)
    first[1:] = row[1:] != row[:-1]
    return {name: value[order[first]] for name, value in joined.items()}
