"""The encoders of Ferrante et al. (2024), Towards neural foundation models for vision (arXiv 2411.09723).

One of EEG, one of MEG and one of fMRI, each trained towards the same image embeddings (CLIP ViT-L/14, D = 768).

Names of the published weights: ``net.N`` is ``trunk.N`` here, in ``SpectrogramConv`` ``trunk.(N + 1)``, since its
trunk begins with the spectrogram, which has no weights; the layer of a person is ``subject_layers.layers.P``. The
published code keeps those layers in a plain dictionary, so that they are never trained: ``freeze_subject_layers``
reproduces it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from contracts import ContractError, Layout
from lightning_modules.networks.encoders import (
    Encoder,
    SensorLayer,
    SubjectLayers,
    sensor_layers,
    sensors_by_times,
    shapes_of,
)

_Plan = Sequence[tuple[int, int, int, int]]
"""Convolutions: multiples of the base width that come out, kernel, stride, padding."""

_SPECTROGRAM_PLAN: _Plan = ((1, 3, 1, 1), (1, 3, 1, 1), (2, 3, 2, 1), (2, 3, 1, 1), (2, 3, 2, 1), (2, 3, 2, 1))
_SIGNAL_PLAN: _Plan = ((1, 11, 3, 1), (1, 7, 2, 1), (2, 5, 2, 1), (2, 3, 2, 1), (2, 3, 2, 1), (2, 3, 2, 1))


class Spectrogram(nn.Module):
    """Absolute value of the short-time Fourier transform, as ``scipy.signal.stft`` with its defaults.

    Hann window (periodic), segments that overlap by half, zeros around the signal, divided by the sum of the window.

    Args:
        window: Length of a segment in samples (``nperseg``).
    """

    hann: Tensor

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window
        # known from the size: not a weight of a checkpoint
        self.register_buffer("hann", torch.hann_window(window), persistent=False)

    def frames(self, times: int) -> int:
        """How many segments a signal of T samples gives."""
        return math.ceil((times - self.window % 2) / self._step) + 1

    @property
    def _step(self) -> int:
        return self.window - self.window // 2

    def forward(self, signal: Float[Tensor, "b c t"]) -> Float[Tensor, "b c f s"]:
        """Return ``(B, C, window // 2 + 1, frames)`` of ``(B, C, T)``."""
        around = self.window // 2
        covered = (self.frames(signal.shape[-1]) - 1) * self._step + self.window
        # the last segment is filled up
        padded = F.pad(signal, (around, covered - signal.shape[-1] - around))
        transformed = torch.stft(
            padded.flatten(0, 1),
            self.window,
            hop_length=self._step,
            window=self.hann,
            center=False,
            return_complex=True,
        )
        amplitude: Tensor = transformed.abs().unflatten(0, signal.shape[:2])
        return amplitude / self.hann.sum()


class SpectrogramConv(Encoder):
    """The EEG encoder of Ferrante et al. (2024): a spectrogram of each sensor, then convolutions over time x frequency.

    ``(B, C, T)`` -> spectrogram ``(B, C, 21, T / 20 + 1)`` -> six convolutions of width 3, three of them of stride 2 ->
    flattened -> D. As published (C = 128, T = 440 at 1 kHz, D = 768): maps ``(192, 21, 23)`` twice, ``(384, 11, 12)``
    twice, ``(384, 6, 6)``, ``(384, 3, 3)``; 7.85 million parameters; ReLU, no normalisation, no dropout.

    Args:
        layout: One modality with ``(C, T)``; T must be the same for all people.
        base: Channels of the first convolutions; the later ones have twice as many.
        window: Length of a segment of the spectrogram in samples; 40 ms as published.
        subject_layer: ``none`` as published, all people alike; ``convolution``: every person mixes their own sensors
            into common ones.

    Raises:
        ContractError: Signals without time axis, people of different T, of different C without subject layer, or T
            shorter than the window.
    """

    def __init__(
        self, layout: Layout, *, base: int = 192, window: int = 40, subject_layer: SensorLayer = "none"
    ) -> None:
        shapes, times = sensors_by_times(layout, "SpectrogramConv")
        if not 2 <= window <= times:
            raise ContractError(
                f"SpectrogramConv: window={window} must be at least 2 and at most the {times} time points"
            )
        layers, sensors = sensor_layers(shapes, subject_layer, "SpectrogramConv")
        spectrogram = Spectrogram(window)
        height = _length(window // 2 + 1, _SPECTROGRAM_PLAN)
        length = _length(spectrogram.frames(times), _SPECTROGRAM_PLAN)
        super().__init__(
            layers,
            nn.Sequential(
                spectrogram,
                *_convolutions(nn.Conv2d, sensors, base, _SPECTROGRAM_PLAN),
                nn.Flatten(),
                nn.Linear(2 * base * height * length, layout["embedding_width"]),
            ),
        )


class SubjectConv(Encoder):
    """The MEG encoder of Ferrante et al. (2024): a convolution in time for each person, then convolutions for all.

    ``(B, C, T)`` -> width 11 for each person, ``(B, C, T)`` -> six convolutions -> flattened -> D. As published
    (C = 271, T = 281 at 200 Hz, D = 768): ``(192, 91)``, ``(192, 44)``, ``(384, 21)``, ``(384, 11)``, ``(384, 6)``,
    ``(384, 3)``; 3.41 million parameters, and 0.81 million a person; ReLU, no normalisation, no dropout.

    Args:
        layout: One modality with ``(C, T)``; T must be the same for all people. Where people differ in C, each one's
            layer gives as many as the largest C.
        base: Channels of the first convolutions; the later ones have twice as many.

    Raises:
        ContractError: Signals without time axis, people of different T, or T below 33.
    """

    def __init__(self, layout: Layout, *, base: int = 192) -> None:
        shapes, times = sensors_by_times(layout, "SubjectConv")
        length = _length(times, _SIGNAL_PLAN)
        if length < 1:
            raise ContractError(f"SubjectConv: {times} time points are too few for its convolutions, which need 33")
        sensors = max(shape[0] for shape in shapes.values())
        super().__init__(
            SubjectLayers(shapes, lambda shape: nn.Conv1d(shape[0], sensors, 11, padding=5)),
            nn.Sequential(
                *_convolutions(nn.Conv1d, sensors, base, _SIGNAL_PLAN),
                nn.Flatten(),
                nn.Linear(2 * base * length, layout["embedding_width"]),
            ),
        )


class SubjectMLP(Encoder):
    """The fMRI encoder of Ferrante et al. (2024): a linear map for each person, then a hidden layer for all.

    ``(B, V)`` -> ``(B, 1024)`` for each person -> ``(B, 768)`` -> ReLU -> D. As published (V = 15724, D = 768): 1.38
    million parameters, and 16.1 million a person. The published code fills all people's voxels with zeros to one V;
    here each has their own, which is the same function for weights that are cut to them.

    Args:
        layout: One modality; ``(C, T)`` is flattened.
        common: Width of what the people's own layers give.
        hidden: Width of the hidden layer.
    """

    def __init__(self, layout: Layout, *, common: int = 1024, hidden: int = 768) -> None:
        super().__init__(
            SubjectLayers(
                shapes_of(layout), lambda shape: nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), common))
            ),
            nn.Sequential(nn.Linear(common, hidden), nn.ReLU(), nn.Linear(hidden, layout["embedding_width"])),
        )


def _length(size: int, plan: _Plan) -> int:
    """Length of what the convolutions make of a length; below 1 where it is too short."""
    for _, kernel, stride, padding in plan:
        size = max(0, (size + 2 * padding - kernel) // stride + 1)
    return size


def _convolutions(kind: type[nn.Conv1d] | type[nn.Conv2d], channels: int, base: int, plan: _Plan) -> list[nn.Module]:
    """The convolutions of a plan, each with its ReLU."""
    layers: list[nn.Module] = []
    for multiple, kernel, stride, padding in plan:
        layers += [kind(channels, multiple * base, kernel, stride, padding), nn.ReLU()]
        channels = multiple * base
    return layers
