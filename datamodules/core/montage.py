"""Positions of electrodes that are known by the names of their sites alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float

from contracts import DataError


def template_names(names: Sequence[str]) -> dict[str, str]:
    """Spelling of MNE's template of the 10-05 system for each name that it knows, whatever the case (FP1, Fp1)."""
    spelling = {site.casefold(): site for site in _template().ch_names}
    return {name: spelling[name.casefold()] for name in names if name.casefold() in spelling}


def template_positions(names: Sequence[str]) -> Float[np.ndarray, "c 3"]:
    """Positions of sites of the 10-05 system on MNE's template head (Colin 27), in metres, head coordinates.

    Args:
        names: Names of the sites, in any case.

    Raises:
        DataError: A site that the template lacks.
    """
    import mne

    known = template_names(names)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DataError(f"no site {', '.join(unknown)} in the 10-05 system, so its position is not known")
    info = mne.create_info(list(known.values()), sfreq=1.0, ch_types="eeg", verbose="error")
    info.set_montage(_template(), verbose="error")
    places = {channel["ch_name"]: channel["loc"][:3] for channel in info["chs"]}
    return np.stack([places[known[name]] for name in names])


@lru_cache
def _template() -> Any:
    import mne

    # renamed in MNE 1.13; the old name warns there, the new one is unknown before
    names = ("colin27_1005", "standard_1005")
    template = next(name for name in names if name in mne.channels.get_builtin_montages())
    return mne.channels.make_standard_montage(template)
