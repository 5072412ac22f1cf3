"""Where voxels lie: world coordinates from the header of an image."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from datamodules.core.raw import Space

MNI152 = 4
"""Code of NIfTI for coordinates in the space of the MNI 152 template (``nifti1.h``, NIFTI_XFORM_MNI_152)."""


def world_coordinates(
    header: Any, voxels: Int[np.ndarray, "v 3"]
) -> tuple[Float[np.ndarray, "v 3"], Space] | tuple[None, None]:
    """Return the centres of voxels in world coordinates, as the header of a NIfTI image places them.

    The transform is ``sform`` where its code is set, else ``qform``. Code 4 means MNI152; every other one (scanner,
    aligned with another file, Talairach) counts as the person's own space. Where neither code is set, the header knows
    the size of the voxels and no place (``nifti1.h``, method 1).

    Args:
        header: NIfTI header.
        voxels: Indices of the voxels along the axes of the image, from 0.

    Returns:
        Millimetres to the right, front and top, and the name of the space; (None, None) where the header gives no
        place.
    """
    codes = [int(header[name]) for name in ("sform_code", "qform_code")]
    code = next((code for code in codes if code > 0), 0)
    affine = np.asarray(header.get_best_affine(), np.float64)
    if not code or not np.isfinite(affine).all():
        return None, None
    return voxels @ affine[:3, :3].T + affine[:3, 3], "MNI152" if code == MNI152 else "native"
