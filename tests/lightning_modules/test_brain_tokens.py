"""Tokens of fMRI: each kind against a plain computation, region by region, from the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from contracts import ContractError, Layout
from lightning_modules.networks.brain_tokens import BrainTokens, PatchTokens, RegionTimeTokens, RoiTokens, make_tokens

WIDTH, DECODER = 16, 10
# the second person lacks a region, the third has one of a single voxel, in another order, and one of their own
REGIONS = {
    "01": {"V1": 7, "V2": 4, "FFA": 9},
    "02": {"V1": 5, "FFA": 2},
    "03": {"FFA": 1, "V1": 23, "PPA": 6},
}
NAMES = ["V1", "V2", "FFA", "PPA"]
every_person = pytest.mark.parametrize("person", range(3))


def random_weights(tokens: BrainTokens, seed: int = 0) -> dict[str, Tensor]:
    """Replace every weight, zeros included, by random numbers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tokens.parameters():
            parameter.normal_(generator=generator)
    return dict(tokens.state_dict())


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sizes(person: int) -> list[int]:
    return list(list(REGIONS.values())[person].values())


def parts(person: int) -> list[slice]:
    ends = np.cumsum(sizes(person)).tolist()
    return [slice(end - size, end) for end, size in zip(ends, sizes(person), strict=True)]


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


# ---- regions ---------------------------------------------------------------------------------------


def roi_tokens(*, shared: bool = True, heads: int = 3, rois: Any = REGIONS) -> RoiTokens:
    return RoiTokens(rois, heads=heads, width=WIDTH, decoder_width=DECODER, shared_output=shared)


@every_person
def test_a_region_is_convolved_and_projected_by_weights_of_its_own(person: int) -> None:
    tokens = roi_tokens()
    state = random_weights(tokens)
    signal = draw(4, sum(sizes(person)))
    expected = []
    for number, part in enumerate(parts(person)):
        name = f"inputs.layers.{person}.{{}}.{number}.{{}}"
        convolved = F.conv1d(
            F.pad(signal[:, None, part], (1, 1)),
            state[name.format("convolutions", "weight")],
            state[name.format("convolutions", "bias")],
        )
        expected.append(
            F.linear(convolved, state[name.format("projections", "weight")], state[name.format("projections", "bias")])
        )
    found = tokens.embed(tokens.flatten(signal, person), torch.full((4,), person))
    assert found.shape == (4, 3 * len(sizes(person)), WIDTH)
    assert_close(found, torch.cat(expected, dim=1))


@every_person
@pytest.mark.parametrize("shared", [True, False], ids=["code", "paper"])
def test_voxels_are_projected_and_convolved_within_their_region(person: int, shared: bool) -> None:
    tokens = roi_tokens(shared=shared)
    state = random_weights(tokens)
    decoded = draw(4, 3 * len(sizes(person)), DECODER)
    expected = []
    for number in range(len(sizes(person))):
        name = f"outputs.layers.{person}.{{}}.{number}.{{}}"
        convolution = "mix.{1}" if shared else name
        channels = F.linear(
            decoded[:, 3 * number : 3 * number + 3],
            state[name.format("projections", "weight")],
            state[name.format("projections", "bias")],
        )
        mixed = F.conv1d(
            F.pad(channels, (1, 1)),
            state[convolution.format("convolutions", "weight")],
            state[convolution.format("convolutions", "bias")],
        )
        expected.append(mixed[:, 0])
    found = tokens.restore(tokens.reconstruct(decoded, torch.full((4,), person)), person)
    assert_close(found, torch.cat(expected, dim=1))
    assert ("mix.weight" in state) == shared


@pytest.mark.parametrize("shared", [True, False], ids=["code", "paper"])
def test_no_region_reaches_another(shared: bool) -> None:
    """Exactly nothing crosses a border, on the way in and on the way out."""
    tokens = roi_tokens(shared=shared)
    random_weights(tokens)
    subject = torch.zeros(1, dtype=torch.int64)
    signal, decoded = draw(1, 20), draw(1, 9, DECODER)
    for number, part in enumerate(parts(0)):
        changed = signal.clone()
        changed[:, part] += 5
        own = slice(3 * number, 3 * number + 3)
        moved = (tokens.embed(changed, subject) != tokens.embed(signal, subject)).any(dim=2)[0]
        assert moved[own].all()
        assert int(moved.sum()) == 3
        changed = decoded.clone()
        changed[:, own] += 5
        moved = (tokens.reconstruct(changed, subject) != tokens.reconstruct(decoded, subject))[0]
        assert moved[part].all()
        assert int(moved.sum()) == sizes(0)[number]


def test_people_of_one_layout_share_a_batch_and_keep_their_own_weights() -> None:
    tokens = roi_tokens(rois={"a": {"V1": 4, "V2": 3}, "b": {"V1": 4, "V2": 3}})
    random_weights(tokens)
    signal, decoded = draw(5, 7), draw(5, 6, DECODER)
    people = torch.tensor([1, 0, 0, 1, 0])
    for number in range(5):
        one = slice(number, number + 1)
        assert_close(tokens.embed(signal, people)[one], tokens.embed(signal[one], people[one]))
        assert_close(tokens.reconstruct(decoded, people)[one], tokens.reconstruct(decoded[one], people[one]))
    assert not torch.allclose(tokens.embed(signal, people), tokens.embed(signal, 1 - people))


def test_a_region_has_the_same_rows_of_positions_in_everybody() -> None:
    tokens = roi_tokens()
    assert tokens.table == 3 * len(NAMES)
    for rows, own in zip(tokens.rows, REGIONS.values(), strict=True):
        expected = [3 * NAMES.index(name) + head for name in own for head in range(3)]
        assert rows.tolist() == expected


def test_tokens_of_whole_regions_cannot_be_masked() -> None:
    with pytest.raises(ContractError, match="tokens=roi cannot be masked"):
        roi_tokens().token_of(0)


# ---- patches ---------------------------------------------------------------------------------------


def patch_tokens(*voxels: int, patch: int = 4) -> PatchTokens:
    return PatchTokens({str(i): v for i, v in enumerate(voxels)}, patch_size=patch, width=WIDTH, decoder_width=DECODER)


@pytest.mark.parametrize("voxels", [4, 8, 9, 11, 7])
def test_patches_are_wrapped_convolved_and_cut_again(voxels: int) -> None:
    tokens = patch_tokens(12, voxels)
    state = random_weights(tokens)
    signal = draw(3, voxels)
    numbers = tokens.flatten(signal, 1)
    np.testing.assert_array_equal(numbers.numpy(), np.pad(signal.numpy(), ((0, 0), (0, -voxels % 4)), mode="wrap"))
    subject = torch.ones(3, dtype=torch.int64)
    embedded = tokens.embed(numbers, subject)
    by_hand = F.conv1d(numbers[:, None], state["input.weight"], state["input.bias"], stride=4).transpose(1, 2)
    assert_close(embedded, by_hand)
    assert embedded.shape == (3, -(-voxels // 4), WIDTH)
    assert torch.equal(tokens.restore(numbers, 1), signal)
    decoded = draw(3, embedded.shape[1], DECODER)
    restored = tokens.reconstruct(decoded, subject)
    assert_close(restored, F.linear(decoded, state["output.weight"], state["output.bias"]).flatten(1))
    assert tokens.token_of(1).tolist() == [place // 4 for place in range(len(numbers[0]))]


def test_patches_of_different_people_stand_at_the_same_positions() -> None:
    tokens = patch_tokens(9, 20, 4)
    assert [rows.tolist() for rows in tokens.rows] == [[0, 1, 2], [0, 1, 2, 3, 4], [0]]
    assert tokens.table == 5
    assert tokens.numbers == [12, 20, 4]


def test_a_patch_larger_than_a_brain_is_refused() -> None:
    with pytest.raises(ContractError, match="patch_size=4 is more than the 3 voxels"):
        patch_tokens(9, 3)


# ---- regions in time -------------------------------------------------------------------------------


def region_tokens(*, volumes: int = 6, patch: int = 2, rois: Any = REGIONS) -> RegionTimeTokens:
    return RegionTimeTokens(rois, volumes=volumes, patch_size=patch, width=WIDTH, decoder_width=DECODER)


@every_person
@pytest.mark.parametrize(("volumes", "patch"), [(6, 2), (6, 1), (6, 6), (8, 4)])
def test_a_region_in_time_is_a_linear_map_of_its_own(person: int, volumes: int, patch: int) -> None:
    tokens = region_tokens(volumes=volumes, patch=patch)
    state = random_weights(tokens)
    steps = volumes // patch
    own = list(REGIONS.values())[person]
    signal = draw(3, sum(own.values()), volumes)
    decoded = draw(3, len(own) * steps, DECODER, seed=2)
    embedded, restored = [], torch.zeros_like(signal)
    for number, (name, part) in enumerate(zip(own, parts(person), strict=True)):
        cells = own[name] * patch
        for step in range(steps):
            time = slice(step * patch, step * patch + patch)
            matrix = state[f"inputs.layers.{person}.weight"][number, :cells]
            bias = state[f"inputs.layers.{person}.bias"][number]
            here = state["region"][NAMES.index(name)]
            embedded.append(signal[:, part, time].flatten(1) @ matrix + bias + here)
            matrix = state[f"outputs.layers.{person}.weight"][number, :, :cells]
            bias = state[f"outputs.layers.{person}.bias"][number, :cells]
            restored[:, part, time] = (decoded[:, number * steps + step] @ matrix + bias).unflatten(1, (-1, patch))
    subject = torch.full((3,), person)
    assert_close(tokens.embed(tokens.flatten(signal, person), subject), torch.stack(embedded, dim=1))
    assert_close(tokens.restore(tokens.reconstruct(decoded, subject), person), restored)


@every_person
def test_series_are_flattened_and_restored(person: int) -> None:
    tokens = region_tokens()
    signal = draw(2, sum(sizes(person)), 6)
    numbers = tokens.flatten(signal, person)
    assert numbers.shape == (2, tokens.numbers[person])
    assert torch.equal(tokens.restore(numbers, person), signal)


@every_person
def test_every_number_knows_its_token(person: int) -> None:
    """A change of one number moves the token that is said to hold it, and no other; the same on the way back."""
    tokens = region_tokens()
    random_weights(tokens)
    signal = torch.zeros(1, tokens.numbers[person])
    subject = torch.tensor([person])
    token_of = tokens.token_of(person)
    changed = torch.eye(len(token_of)) + signal
    moved = tokens.embed(changed, subject.expand(len(changed))) != tokens.embed(signal, subject)
    assert torch.equal(moved.any(dim=2).nonzero()[:, 1], token_of)
    length = int(token_of.max()) + 1
    decoded = torch.zeros(1, length, DECODER)
    for token in range(length):
        changed = decoded.clone()
        changed[:, token] = 1
        differs = (tokens.reconstruct(changed, subject) != tokens.reconstruct(decoded, subject))[0]
        assert torch.equal(differs, token_of == token)


def test_positions_are_those_in_time_and_the_region_is_told_by_its_name() -> None:
    tokens = region_tokens()
    random_weights(tokens)
    assert tokens.table == 3
    for person, own in enumerate(REGIONS.values()):
        assert tokens.rows[person].tolist() == [0, 1, 2] * len(own)
        place = tokens.decoder_place(person).unflatten(0, (-1, 3))
        assert torch.equal(place, tokens.decoder_region[[NAMES.index(n) for n in own]][:, None].expand(-1, 3, -1))
    assert roi_tokens().decoder_place(0) is patch_tokens(8).decoder_place(0) is None


def test_regions_of_very_different_sizes() -> None:
    """What pads the small regions has no gradient and no weight, so it never becomes anything."""
    rois = {"01": {"tiny": 1, "huge": 400, "small": 3}}
    tokens = region_tokens(rois=rois)
    for weight in (tokens.inputs.layers[0].weight, tokens.outputs.layers[0].weight.transpose(1, 2)):
        for number, size in enumerate(rois["01"].values()):
            assert (weight[number, size * 2 :] == 0).all()
            assert (weight[number, : size * 2] != 0).all()
            assert weight[number, : size * 2].abs().max() <= (6 / (size * 2 + weight.shape[2])) ** 0.5
    subject = torch.zeros(2, dtype=torch.int64)
    embedded = tokens.embed(draw(2, 404 * 6), subject)
    tokens.reconstruct(embedded[..., :DECODER], subject).square().sum().backward()
    for number, size in enumerate(rois["01"].values()):
        for layer, axis in ((tokens.inputs.layers[0], 0), (tokens.outputs.layers[0], 1)):
            gradient = layer.weight.grad[number].movedim(axis, 0)
            assert (gradient[size * 2 :] == 0).all()
            assert (gradient[: size * 2] != 0).any(dim=1).all()


def test_series_that_are_no_multiple_of_a_token_are_refused() -> None:
    with pytest.raises(ContractError, match="7 volumes are no multiple of patch_size=2"):
        region_tokens(volumes=7)


# ---- from a layout ---------------------------------------------------------------------------------


def layout(rois: dict[str, dict[str, int]], *, volumes: int | dict[str, int] = 0, **other: Any) -> Layout:
    length = volumes if isinstance(volumes, dict) else dict.fromkeys(rois, volumes)
    shape = {name: [sum(own.values()) or 8] + [length[name]] * bool(length[name]) for name, own in rois.items()}
    return Layout(**{"modality": "fmri", "subjects": list(rois), "shape": shape, "rois": rois, **other})  # type: ignore[typeddict-item]


def made(kind: Any, of: Layout, *, common: bool = False) -> BrainTokens:
    return make_tokens(
        kind, of, heads=3, patch_size=2, width=WIDTH, decoder_width=DECODER, shared_output=True, common=common
    )


SAME = {"a": {"V1": 3, "V2": 5}, "b": {"V1": 3, "V2": 5}}


@pytest.mark.parametrize("kind", ["roi", "patch", "region_time"])
def test_people_have_layers_of_their_own_or_one_for_all(kind: str) -> None:
    of = layout(SAME, volumes=4 if kind == "region_time" else 0)
    own, common = made(kind, of), made(kind, of, common=True)
    assert len(own.rows) == len(own.numbers) == 2
    assert len(common.rows) == len(common.numbers) == 1
    assert own.rows[1].tolist() == common.rows[0].tolist()
    layers = [{name.split(".")[2] for name in tokens.state_dict() if ".layers." in name} for tokens in (own, common)]
    assert layers == ([set(), set()] if kind == "patch" else [{"0", "1"}, {"0"}])


@pytest.mark.parametrize("kind", ["roi", "region_time"])
def test_data_without_names_of_regions_are_one_region(kind: str) -> None:
    tokens = made(kind, layout({"a": {}, "b": {}}, volumes=4 if kind == "region_time" else 0))
    assert tokens.sizes == [[8], [8]]  # type: ignore[attr-defined]


REFUSED: dict[str, tuple[Callable[[], BrainTokens], str]] = {
    "eeg": (lambda: made("roi", layout(SAME, modality="eeg")), "for fMRI, the data set is eeg; choose another --data"),
    "series as regions": (lambda: made("roi", layout(SAME, volumes=4)), r"tokens=roi are made of .*shape \[8, 4\]"),
    "series as patches": (lambda: made("patch", layout(SAME, volumes=4)), "tokens=patch are made of responses"),
    "responses as series": (lambda: made("region_time", layout(SAME)), "tokens=region_time are made of time series"),
    "lengths": (lambda: made("region_time", layout(SAME, volumes={"a": 4, "b": 6})), r"found \[4, 6\] volumes"),
    "sizes": (
        lambda: made("roi", layout({"a": {"V1": 3}, "b": {"V1": 4}}), common=True),
        "voxels=common needs .* sub-a has {'V1': 3}, sub-b {'V1': 4}",
    ),
    "names": (lambda: made("patch", layout({"a": {"V1": 3}, "b": {"V2": 3}}), common=True), "voxels=common"),
    "order": (
        lambda: made("roi", layout({"a": {"V1": 3, "V2": 3}, "b": {"V2": 3, "V1": 3}}), common=True),
        "set --model.init_args.voxels=own",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ContractError, match=message):
        make()
