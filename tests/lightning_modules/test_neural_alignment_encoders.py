"""The encoders of Ferrante et al. against the published values, scipy and the published numbers of parameters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.signal import stft
from torch import Tensor

from contracts import NO_LABEL
from lightning_modules import SpectrogramConv, SubjectConv, SubjectMLP
from lightning_modules.networks.encoders import Encoder
from lightning_modules.networks.infonce import InfoNCE
from lightning_modules.networks.neural_alignment_encoders import Spectrogram
from tests.lightning_modules.encoding import layout_of, signals

EXACT = {"rtol": 1e-5, "atol": 1e-5}

# ---- published values ------------------------------------------------------------------------------


@pytest.fixture
def golden(shared: Path) -> dict[str, Tensor]:
    return load_file(shared / "golden" / "neural_alignment.safetensors")


def load(encoder: Encoder, golden: dict[str, Tensor], kind: str, people: list[int], *, before: int = 0) -> None:
    """Published names: ``net.N`` is ``trunk.(N + before)``, people have layers of their own under their number."""
    weights = {}
    for name, value in golden.items():
        if name.startswith(f"{kind}/net."):
            _, number, rest = name.split(".")
            weights[f"trunk.{int(number) + before}.{rest}"] = value
    for place, person in enumerate(people):
        # our own layers of fMRI flatten first
        inner = "1." if kind == "fmri" else ""
        for rest in ("weight", "bias"):
            value = golden[f"{kind}_subject_layer_{person}/{rest}"]
            weights[f"subject_layers.layers.{place}.{inner}{rest}"] = value
    encoder.load_state_dict(weights, strict=True)
    encoder.eval()


def places(golden: dict[str, Tensor], kind: str, people: list[int]) -> Tensor:
    return torch.tensor([people.index(person) for person in golden[f"{kind}_subject"].tolist()])


def test_the_eeg_encoder_gives_the_published_embeddings(golden: dict[str, Tensor]) -> None:
    encoder = SpectrogramConv(layout_of({"a": [16, 440], "b": [16, 440]}, width=24), base=8)
    load(encoder, golden, "eeg", [], before=1)
    assert isinstance(encoder.trunk[0], Spectrogram)
    torch.testing.assert_close(encoder.trunk[1:](golden["eeg_spectrogram"]), golden["eeg_embedding"], **EXACT)


def test_the_meg_encoder_gives_the_published_embeddings(golden: dict[str, Tensor]) -> None:
    people = [1, 2, 3, 4]
    encoder = SubjectConv(layout_of({str(person): [20, 281] for person in people}, width=24), base=8)
    load(encoder, golden, "meg", people)
    found = encoder(golden["meg_signal"], places(golden, "meg", people))
    torch.testing.assert_close(found, golden["meg_embedding"], **EXACT)


def test_the_fmri_encoder_gives_the_published_embeddings(golden: dict[str, Tensor]) -> None:
    people = [1, 2, 5, 7]
    encoder = SubjectMLP(layout_of({str(person): [64] for person in people}, width=24), common=32, hidden=40)
    load(encoder, golden, "fmri", people)
    found = encoder(golden["fmri_signal"], places(golden, "fmri", people))
    torch.testing.assert_close(found, golden["fmri_embedding"], **EXACT)


def test_people_of_fewer_voxels_are_what_the_published_code_fills_with_zeros(golden: dict[str, Tensor]) -> None:
    people, voxels = [1, 2, 5, 7], [64, 50, 61, 33]
    padded = SubjectMLP(layout_of({str(person): [64] for person in people}, width=24), common=32, hidden=40)
    load(padded, golden, "fmri", people)
    own = SubjectMLP(
        layout_of({str(person): [size] for person, size in zip(people, voxels, strict=True)}, width=24),
        common=32,
        hidden=40,
    )
    state = padded.state_dict()
    for place, size in enumerate(voxels):
        name = f"subject_layers.layers.{place}.1.weight"
        state[name] = state[name][:, :size]
    own.load_state_dict(state, strict=True)
    for place, size in enumerate(voxels):
        signal, who = signals(5, [size], seed=place), torch.full((5,), place)
        filled = torch.nn.functional.pad(signal, (0, 64 - size))
        torch.testing.assert_close(own(signal, who), padded(filled, who), **EXACT)


def test_the_loss_is_the_published_one(golden: dict[str, Tensor]) -> None:
    loss = InfoNCE(
        temperature=0.1, temperature_form="fixed", direction="brain_to_image", duplicates="negatives", normalise="both"
    )
    rows = len(golden["loss_brain"])
    # the same picture twice is no reason to leave a pair out
    found = loss(
        golden["loss_brain"],
        golden["loss_image"],
        stimulus=torch.zeros(rows, dtype=torch.int64),
        label=torch.full((rows,), NO_LABEL),
    )
    torch.testing.assert_close(found, golden["loss"], **EXACT)


# ---- the spectrogram -------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [440, 441, 459, 460, 60, 40])
@pytest.mark.parametrize("window", [40, 39, 2])
def test_the_spectrogram_is_that_of_scipy(times: int, window: int) -> None:
    signal = signals(2, [3, times])
    expected = np.abs(stft(signal.double().numpy(), fs=1000, nperseg=window)[2])
    module = Spectrogram(window)
    assert module.frames(times) == expected.shape[-1]
    np.testing.assert_allclose(module(signal).numpy(), expected, atol=1e-6)


def test_the_published_spectrogram_has_21_frequencies_and_23_moments() -> None:
    assert Spectrogram(40)(signals(2, [128, 440])).shape == (2, 128, 21, 23)


def test_a_spectrogram_has_gradients_and_no_weights() -> None:
    module = Spectrogram(8)
    assert not module.state_dict()
    signal = torch.zeros(1, 1, 20, requires_grad=True)
    module(signal).sum().backward()
    assert signal.grad is not None
    assert torch.isfinite(signal.grad).all()


def test_the_eeg_encoder_takes_the_spectrogram_of_the_signal() -> None:
    encoder = SpectrogramConv(layout_of({"a": [3, 50]}), base=4, window=10)
    signal = signals(2, [3, 50])
    spectrogram = np.abs(stft(signal.double().numpy(), nperseg=10)[2])
    expected = encoder.trunk[1:](torch.from_numpy(spectrogram).float())
    torch.testing.assert_close(encoder(signal, torch.zeros(2, dtype=torch.int64)), expected, **EXACT)


# ---- published sizes -------------------------------------------------------------------------------


def count(module: torch.nn.Module) -> float:
    """Millions of parameters."""
    return round(sum(parameter.numel() for parameter in module.parameters()) / 1e6, 2)


def test_published_numbers_of_parameters() -> None:
    layouts = [
        layout_of({str(i): shape for i in range(people)}, width=768)
        for people, shape in ((6, [128, 440]), (4, [271, 281]), (4, [15724]))
    ]
    with torch.device("meta"):
        eeg, meg, fmri = (
            make(layout) for make, layout in zip((SpectrogramConv, SubjectConv, SubjectMLP), layouts, strict=True)
        )
    assert (count(eeg.trunk), count(eeg.subject_layers)) == (7.85, 0.0)
    assert (count(meg.trunk), count(meg.subject_layers)) == (3.41, 3.23)
    assert (count(fmri.trunk), round(count(fmri.subject_layers), 1)) == (1.38, 64.4)


def test_published_maps() -> None:
    eeg = SpectrogramConv(layout_of({"a": [128, 440]}, width=768))
    meg = SubjectConv(layout_of({"a": [271, 281]}, width=768))
    for encoder, shape, expected in (
        (eeg, [128, 440], [(192, 21, 23)] * 2 + [(384, 11, 12)] * 2 + [(384, 6, 6), (384, 3, 3)]),
        (meg, [271, 281], [(192, 91), (192, 44), (384, 21), (384, 11), (384, 6), (384, 3)]),
    ):
        maps = []
        x = encoder.subject_layers(signals(1, shape), torch.zeros(1, dtype=torch.int64))
        for layer in encoder.trunk:
            x = layer(x)
            if isinstance(layer, (torch.nn.Conv1d, torch.nn.Conv2d)):
                maps.append(tuple(x.shape[1:]))
        assert maps == expected
        assert x.shape == (1, 768)
