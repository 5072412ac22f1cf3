"""Scores of one decoded picture and the one that was seen: pixels, structure, perceptual distance."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate

from callbacks.metrics.ranks import Ranks, n_way
from contracts import DataError

GREY = (0.2125, 0.7154, 0.0721)
"""Weights of red, green and blue in scikit-image's ``rgb2gray``, which the published SSIM is computed from."""

SMALLEST = 3
"""The smallest side of a picture, in pixels, that SSIM is defined for here: a window of one pixel has no variance."""

PERCEPTUAL_SIZE = 64
"""Smallest side of the pictures that LPIPS is computed from, in pixels."""

_WINDOW = 11  # scikit-image: 3.5 standard deviations of 1.5 pixels to each side
_SIGMA = 1.5


def check_pictures(pictures: Tensor, name: str, *, dimensions: int = 4) -> None:
    """Refuse what is not a batch of RGB pictures in bytes.

    Args:
        pictures: ``(n, 3, H, W)`` uint8, or ``(n, S, 3, H, W)``.
        name: What they are; used in the message.
        dimensions: 4 or 5.

    Raises:
        DataError: Another shape, or another type than uint8.
    """
    if pictures.dtype != torch.uint8:
        spread = ""
        if pictures.numel():
            spread = f" with values {float(pictures.min()):g} .. {float(pictures.max()):g}"
        raise DataError(
            f"{name} must be uint8 in 0..255, found {str(pictures.dtype).removeprefix('torch.')}{spread}; return "
            "pictures in 0..1 as (255 * x).round().clamp(0, 255).byte() from the step"
        )
    if pictures.ndim != dimensions or pictures.shape[-3] != 3 or 0 in pictures.shape[1:]:
        shape = "(n, 3, H, W)" if dimensions == 4 else "(n, S, 3, H, W)"
        raise DataError(f"{name} must be {shape}, found {tuple(pictures.shape)}; return RGB pictures from the step")


def resize(
    pictures: UInt8[Tensor, "n 3 h w"], size: tuple[int, int], *, mode: str = "bilinear"
) -> Float[Tensor, "n 3 height width"]:
    """Resize whole pictures, without keeping the ratio of their sides, with antialiasing where they shrink.

    Args:
        pictures: ``(n, 3, H, W)`` in 0..255.
        size: Height and width in pixels.
        mode: ``bilinear`` or ``bicubic``.

    Returns:
        ``(n, 3, height, width)`` float32 in 0..1, on the same device; not rounded to bytes.
    """
    x = pictures.float() / 255
    if tuple(x.shape[-2:]) == size:
        return x
    # bicubic overshoots
    return interpolate(x, size, mode=mode, antialias=True, align_corners=False).clamp(0, 1)


def _pair(generated: Tensor, seen: Tensor, size: int | None) -> tuple[Tensor, Tensor]:
    check_pictures(generated, "generated")
    check_pictures(seen, "image")
    if len(generated) != len(seen):
        raise DataError(f"there are {len(generated)} generated pictures and {len(seen)} seen ones; give one pair a row")
    shape = (int(seen.shape[-2]), int(seen.shape[-1])) if size is None else (size, size)
    return resize(generated, shape), resize(seen, shape)


def pixel_correlation(
    generated: UInt8[Tensor, "n 3 h w"], seen: UInt8[Tensor, "n 3 height width"], *, size: int | None = None
) -> Float[Tensor, " n"]:
    """Pearson correlation of all pixels and colours of a pair of pictures (PixCorr).

    r = sum (x - mean x)(y - mean y) / sqrt(sum (x - mean x)^2 sum (y - mean y)^2) over 3 H W values. Published
    with both pictures resized to 425 x 425, bilinear (Ozcelik & VanRullen 2023; Scotti et al. 2023, MindEye).

    Args:
        generated: ``(n, 3, h, w)`` pictures in 0..255.
        seen: ``(n, 3, H, W)``, the picture of the same row.
        size: Side in pixels that both are resized to; None resizes ``generated`` to the size of ``seen``.

    Returns:
        ``(n,)`` float64 in -1..1; NaN where one of the two has a single value in all pixels.

    Raises:
        DataError: Not pictures in bytes, or another number of them.
    """
    x, y = (side.double().flatten(1) for side in _pair(generated, seen, size))
    flat = (x.amax(1) == x.amin(1)) | (y.amax(1) == y.amin(1))
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    r: Tensor = torch.linalg.vecdot(x, y) / (torch.linalg.vector_norm(x, dim=1) * torch.linalg.vector_norm(y, dim=1))
    return r.clamp(-1, 1).masked_fill(flat, torch.nan)


class LocalMoments:
    """Local means and variances of grey pictures, from which SSIM of any pairs of them is made.

    Args:
        pictures: ``(n, 3, H, W)`` float in 0..1.

    Raises:
        DataError: A side below ``SMALLEST``.
    """

    def __init__(self, pictures: Float[Tensor, "n 3 h w"]) -> None:
        shortest = min(pictures.shape[-2:])
        if shortest < SMALLEST:
            raise DataError(
                f"SSIM needs pictures of at least {SMALLEST} pixels a side, found {tuple(pictures.shape[-2:])}; "
                "give a larger size, or leave ssim out of scores"
            )
        self.window = ssim_window(shortest)
        weights = torch.tensor(GREY, dtype=pictures.dtype, device=pictures.device)
        self.grey = torch.einsum("nchw,c->nhw", pictures, weights)
        self.mean = _blur(self.grey, self.window)
        self.variance = _blur(self.grey.square(), self.window) - self.mean.square()

    def ssim(self, other: LocalMoments, mine: Tensor, theirs: Tensor) -> Float[Tensor, " n"]:
        """SSIM of the pictures ``mine`` of these with the pictures ``theirs`` of the others, both ``(n,)`` rows."""
        mean, mean_other = self.mean[mine], other.mean[theirs]
        covariance = _blur(self.grey[mine] * other.grey[theirs], self.window) - mean * mean_other
        c1, c2 = 0.01**2, 0.03**2
        above = (2 * mean * mean_other + c1) * (2 * covariance + c2)
        below = (mean.square() + mean_other.square() + c1) * (self.variance[mine] + other.variance[theirs] + c2)
        value: Tensor = (above / below).flatten(1).mean(1, dtype=torch.float64)
        return value


def ssim_window(shortest: int) -> int:
    """Side of the Gaussian window in pixels: 11, or the largest odd number that a smaller picture holds."""
    return min(_WINDOW, shortest - 1 + shortest % 2)


def _blur(x: Tensor, window: int) -> Tensor:
    """Gaussian mean of ``(n, H, W)`` at the places where the whole window lies inside."""
    place = torch.arange(window, dtype=x.dtype, device=x.device) - window // 2
    kernel = torch.exp(-0.5 * (place / _SIGMA).square())
    kernel /= kernel.sum()
    x = conv2d(x[:, None], kernel.view(1, 1, -1, 1))
    return conv2d(x, kernel.view(1, 1, 1, -1))[:, 0]


def ssim(
    generated: UInt8[Tensor, "n 3 h w"], seen: UInt8[Tensor, "n 3 height width"], *, size: int | None = None
) -> Float[Tensor, " n"]:
    """Structural similarity of a pair of pictures in grey (Wang et al., IEEE TIP 13, 2004).

    Mean over places of (2 m_x m_y + C1)(2 s_xy + C2) / ((m_x^2 + m_y^2 + C1)(s_x^2 + s_y^2 + C2)) with C1 = .01^2 and
    C2 = .03^2 for values in 0..1, in a Gaussian window of 1.5 pixels cut off at 11 x 11, population covariance, over
    the places whose window lies in the picture. That is ``structural_similarity(gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=1)`` of scikit-image on ``rgb2gray``, published at 425 x 425 pixels
    (MindEye). Torchmetrics has the same places, but its mean takes in those at the border. In pictures below 11 pixels
    the window is the largest odd one that fits.

    Args:
        generated: ``(n, 3, h, w)`` pictures in 0..255.
        seen: ``(n, 3, H, W)``, the picture of the same row.
        size: Side in pixels that both are resized to; None resizes ``generated`` to the size of ``seen``.

    Returns:
        ``(n,)`` float64, at most 1.

    Raises:
        DataError: Not pictures in bytes, another number of them, or a side below 3 pixels.
    """
    x, y = _pair(generated, seen, size)
    rows = torch.arange(len(x), device=x.device)
    # variances are small differences of squares
    return LocalMoments(x.double()).ssim(LocalMoments(y.double()), rows, rows)


def perceptual_distance(
    generated: UInt8[Tensor, "n 3 h w"], seen: UInt8[Tensor, "n 3 height width"], network: nn.Module
) -> Float[Tensor, " n"]:
    """LPIPS of a pair of pictures (Zhang et al., CVPR 2018): weighted distance of normalised features, 0 is equal.

    Args:
        generated: ``(n, 3, h, w)`` pictures in 0..255; resized to the size of ``seen``.
        seen: ``(n, 3, H, W)``, the picture of the same row; below 64 pixels a side, where the network has no room,
            both are enlarged to 64 x 64.
        network: Torchmetrics' LPIPS network, whose forward takes two batches in 0..1 with ``normalize=True``.

    Returns:
        ``(n,)`` float64, on the device of the network.

    Raises:
        DataError: Not pictures in bytes, or another number of them.
    """
    x, y = _pair(generated, seen, PERCEPTUAL_SIZE if min(seen.shape[-2:]) < PERCEPTUAL_SIZE else None)
    with torch.no_grad():
        distance: Any = network(x, y, normalize=True)
    value: Tensor = rearrange(distance, "n 1 1 1 -> n").double()
    return value


def class_scores(
    logits: Float[Tensor, "n classes"], candidates: Tensor, n: int, k: int = 1
) -> Float[Tensor, "n candidates"]:
    """n-way top-k accuracy of each picture for each class that might be the right one.

    The same closed form as ``classifier_n_way``, for every candidate class at once; that of the class which the
    classifier sees in the seen picture is the score, the others tell what permuted stimuli give.

    Args:
        logits: ``(n, classes)`` of the generated pictures.
        candidates: ``(c,)`` int64 class numbers.
        n: Number of candidate classes including the right one.
        k: Number of places that count.

    Returns:
        ``(n, c)`` float64 in 0..1.

    Raises:
        DataError: A logit is not a number.
        ValueError: n or k is out of range.
    """
    bad = int(torch.isnan(logits).any(1).sum())
    if bad:
        raise DataError(f"the classifier gives NaN for {bad} of {len(logits)} generated pictures; check its weights")
    ordered = logits.sort(dim=1).values
    value = logits[:, candidates].contiguous()
    better = logits.shape[1] - torch.searchsorted(ordered, value, right=True)
    tied = logits.shape[1] - better - torch.searchsorted(ordered, value, right=False) - 1
    return n_way(Ranks(better, tied, logits.shape[1]), n, k)
