"""Tokens of fMRI: what a masked autoencoder sees of a signal, and back.

Three kinds, one interface. Regions differ in size between people, so what depends on a region's voxels is a layer
of every person's own; what does not is shared.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn

from contracts import ContractError, Layout
from lightning_modules.networks.encoders import SubjectLayers
from lightning_modules.networks.region_layers import RegionInput, RegionOutput

Kind = Literal["roi", "patch", "region_time"]
Rois = Mapping[str, int]


class BrainTokens(nn.Module):
    """Base of the three kinds.

    A signal is flattened to the N ``numbers`` that the tokens cover; every number belongs to one token, and every
    token has a row in a table of positions that is the same for all people.

    Attributes:
        rows: By person, the row of the table of positions of each token, ``(L,)``.
        numbers: By person, N.
        table: Number of rows of the table.
        names: Names of all regions, in the order by which they are numbered; empty where that plays no part.
    """

    rows: list[Int64[Tensor, " l"]]
    numbers: list[int]
    table: int
    names: list[str]

    def order_regions(self, names: Sequence[str]) -> None:
        """Number the regions of these names first, in this order: what is known about a region goes by its number."""

    @abstractmethod
    def flatten(self, signal: Float[Tensor, "b ..."], person: int) -> Float[Tensor, "b n"]:
        """Return the numbers of the signals of one layout."""

    @abstractmethod
    def restore(self, numbers: Float[Tensor, "b n"], person: int) -> Float[Tensor, "b ..."]:
        """Return the signals that such numbers are; the reverse of ``flatten``."""

    @abstractmethod
    def embed(self, numbers: Float[Tensor, "b n"], subject: Int64[Tensor, " b"]) -> Float[Tensor, "b l d"]:
        """Return the tokens, without positions."""

    @abstractmethod
    def reconstruct(self, tokens: Float[Tensor, "b l e"], subject: Int64[Tensor, " b"]) -> Float[Tensor, "b n"]:
        """Return the numbers that the decoder's tokens stand for."""

    def decoder_place(self, person: int) -> Float[Tensor, "l e"] | None:
        """What tells the decoder where a token is, beside its position; None for nothing."""
        return None

    @abstractmethod
    def token_of(self, person: int) -> Int64[Tensor, " n"]:
        """Return the token of each number."""


class RoiTokens(BrainTokens):
    """LEA's tokens: ``heads`` of every region, over all of its voxels (Qian et al. 2023, section 3.1 and code).

    In: for each region a convolution of width 3 over its voxels to ``heads`` channels, then a linear map over the
    voxel axis, no activation. Out: for each region a linear map from token to voxels, then a convolution of
    ``heads`` channels to one, which all regions share in the published code and none in the paper.

    Args:
        rois: By person, region -> number of voxels, in the order of the voxels.
        heads: Tokens of each region.
        width: D of the encoder.
        decoder_width: Width of the decoder.
        shared_output: Whether all regions (and people) share the output convolution.
    """

    def __init__(
        self, rois: Mapping[str, Rois], *, heads: int, width: int, decoder_width: int, shared_output: bool
    ) -> None:
        super().__init__()
        self.rois = [dict(own) for own in rois.values()]
        self.sizes = [list(own.values()) for own in rois.values()]
        self.numbers = [sum(sizes) for sizes in self.sizes]
        self.heads = heads
        self.names = []
        self.order_regions(_union(rois))
        sizes = dict(zip(rois, self.sizes, strict=True))
        self.inputs = SubjectLayers(sizes, lambda own: _RoiInput(own, heads, width))
        self.outputs = SubjectLayers(sizes, lambda own: _RoiOutput(own, heads, decoder_width, mixed=not shared_output))
        self.mix = nn.Conv1d(heads, 1, 3, padding=1) if shared_output else None

    def order_regions(self, names: Sequence[str]) -> None:
        """Number the regions of these names first, in this order."""
        self.names = list(dict.fromkeys([*names, *self.names]))
        self.rows = [_rows_of_regions(own, self.names, self.heads) for own in self.rois]
        self.table = len(self.names) * self.heads

    def flatten(self, signal: Tensor, person: int) -> Tensor:
        """Return ``(B, V)`` signals as they are."""
        return signal

    def restore(self, numbers: Tensor, person: int) -> Tensor:
        """Return ``(B, V)`` signals as they are."""
        return numbers

    def embed(self, numbers: Float[Tensor, "b v"], subject: Int64[Tensor, " b"]) -> Float[Tensor, "b l d"]:
        """Return ``heads`` tokens of each region, region by region."""
        tokens: Tensor = self.inputs(numbers, subject)
        return tokens

    def reconstruct(self, tokens: Float[Tensor, "b l e"], subject: Int64[Tensor, " b"]) -> Float[Tensor, "b v"]:
        """Return the voxels."""
        voxels: Tensor = self.outputs(tokens, subject)
        if self.mix is None:
            return voxels
        # the channels of a region end in a column of zeros: the padding of its neighbours' convolutions
        mixed = self.mix(voxels)[:, 0]
        parts = mixed.split([size + 1 for size in self.sizes[int(subject[0])]], dim=1)
        return torch.cat([part[:, :-1] for part in parts], dim=1)

    def token_of(self, person: int) -> Tensor:
        """Refuse: every token of a region sees all of its voxels.

        Raises:
            ContractError: Always.
        """
        raise ContractError("tokens=roi cannot be masked: every token of a region sees all its voxels; masking=none")


class _RoiInput(nn.Module):
    def __init__(self, sizes: list[int], heads: int, width: int) -> None:
        super().__init__()
        self.sizes = sizes
        self.convolutions = nn.ModuleList(nn.Conv1d(1, heads, 3, padding=1) for _ in sizes)
        self.projections = nn.ModuleList(nn.Linear(size, width) for size in sizes)

    def forward(self, signal: Float[Tensor, "b v"]) -> Float[Tensor, "b l d"]:
        regions = zip(signal[:, None].split(self.sizes, dim=2), self.convolutions, self.projections, strict=True)
        return torch.cat([project(convolve(region)) for region, convolve, project in regions], dim=1)


class _RoiOutput(nn.Module):
    def __init__(self, sizes: list[int], heads: int, width: int, *, mixed: bool) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(width, size) for size in sizes)
        self.convolutions = nn.ModuleList(nn.Conv1d(heads, 1, 3, padding=1) for _ in sizes) if mixed else None

    def forward(self, tokens: Float[Tensor, "b l e"]) -> Tensor:
        """Return voxels ``(B, V)``, or channels ``(B, heads, V + R)`` with a column of zeros after each region."""
        regions = tokens.chunk(len(self.projections), dim=1)
        channels = [project(region) for project, region in zip(self.projections, regions, strict=True)]
        if self.convolutions is None:
            return torch.cat([F.pad(region, (0, 1)) for region in channels], dim=2)
        mixed = [convolve(region)[:, 0] for convolve, region in zip(self.convolutions, channels, strict=True)]
        return torch.cat(mixed, dim=1)


class PatchTokens(BrainTokens):
    """Tokens of consecutive voxels, as in MinD-Vis (Chen et al. 2023, section 3.2): the same weights everywhere.

    Signals are continued from their beginning to fill the last patch.

    Args:
        voxels: By person, V.
        patch_size: Voxels of a token.
        width: D of the encoder.
        decoder_width: Width of the decoder.
    """

    def __init__(self, voxels: Mapping[str, int], *, patch_size: int, width: int, decoder_width: int) -> None:
        super().__init__()
        patches = [-(-size // patch_size) for size in voxels.values()]
        if any(size < patch_size for size in voxels.values()):
            raise ContractError(f"patch_size={patch_size} is more than the {min(voxels.values())} voxels of a person")
        self.rows = [torch.from_numpy(np.arange(count)) for count in patches]
        self.voxels = list(voxels.values())
        self.numbers = [count * patch_size for count in patches]
        self.table = max(patches)
        self.names = []
        self.patch_size = patch_size
        self.input = nn.Conv1d(1, width, patch_size, stride=patch_size)
        self.output = nn.Linear(decoder_width, patch_size)

    def flatten(self, signal: Float[Tensor, "b v"], person: int) -> Float[Tensor, "b n"]:
        """Continue the signals to whole patches."""
        return torch.cat([signal, signal[:, : self.numbers[person] - self.voxels[person]]], dim=1)

    def restore(self, numbers: Float[Tensor, "b n"], person: int) -> Float[Tensor, "b v"]:
        """Leave out what only filled the last patch."""
        return numbers[:, : self.voxels[person]]

    def embed(self, numbers: Float[Tensor, "b n"], subject: Int64[Tensor, " b"]) -> Float[Tensor, "b l d"]:
        """Return one token a patch."""
        embedded: Tensor = self.input(numbers[:, None])
        return rearrange(embedded, "b d l -> b l d")

    def reconstruct(self, tokens: Float[Tensor, "b l e"], subject: Int64[Tensor, " b"]) -> Float[Tensor, "b n"]:
        """Return the voxels of all patches."""
        patches: Tensor = self.output(tokens)
        return rearrange(patches, "b l p -> b (l p)")

    def token_of(self, person: int) -> Tensor:
        """Return the patch of each voxel."""
        return torch.arange(self.numbers[person]) // self.patch_size


class RegionTimeTokens(BrainTokens):
    """Tokens of a region during consecutive volumes, for time series ``(B, V, T)``.

    Every region has its own linear map from its voxels and volumes to a token and back, and an embedding of its
    name, which people share. Maps are kept as one block, padded to the largest region, so that hundreds of
    parcels are a single matrix product.

    Args:
        rois: By person, region -> number of voxels, in the order of the voxels.
        volumes: T, the same for all people.
        patch_size: Volumes of a token; divides T.
        width: D of the encoder.
        decoder_width: Width of the decoder.

    Raises:
        ContractError: A length that is not a multiple of ``patch_size``.
    """

    def __init__(
        self, rois: Mapping[str, Rois], *, volumes: int, patch_size: int, width: int, decoder_width: int
    ) -> None:
        super().__init__()
        if volumes % patch_size:
            raise ContractError(
                f"{volumes} volumes are no multiple of patch_size={patch_size}; change --model.init_args.patch_size or "
                "the length of the segments"
            )
        self.names = _union(rois)
        self.rois = [dict(own) for own in rois.values()]
        self.steps = volumes // patch_size
        self.patch_size = patch_size
        self.volumes = volumes
        # regions have no order, so positions are those in time
        self.rows = [torch.from_numpy(np.tile(np.arange(self.steps), len(own))) for own in rois.values()]
        self.regions = [_rows_of_regions(own, self.names, 1) for own in self.rois]
        self.sizes = [list(own.values()) for own in rois.values()]
        self.numbers = [sum(sizes) * volumes for sizes in self.sizes]
        self.table = self.steps
        self.region = nn.Parameter(torch.empty(len(self.names), width))
        self.decoder_region = nn.Parameter(torch.empty(len(self.names), decoder_width))
        # as large as the tokens: attention must tell the regions apart before it can learn which of them matter
        nn.init.normal_(self.region)
        nn.init.normal_(self.decoder_region)
        sizes = dict(zip(rois, self.sizes, strict=True))
        self.inputs = SubjectLayers(sizes, lambda own: RegionInput(own, patch_size, width))
        self.outputs = SubjectLayers(sizes, lambda own: RegionOutput(own, patch_size, decoder_width))

    def order_regions(self, names: Sequence[str]) -> None:
        """Number the regions of these names first, in this order; embeddings go with their names."""
        before, self.names = self.names, list(dict.fromkeys([*names, *self.names]))
        self.regions = [_rows_of_regions(own, self.names, 1) for own in self.rois]
        place = torch.tensor([self.names.index(name) for name in before])
        for name in ("region", "decoder_region"):
            old = self.get_parameter(name)
            new = torch.empty(len(self.names), old.shape[1], device=old.device).normal_()
            new[place.to(old.device)] = old.detach()
            setattr(self, name, nn.Parameter(new))

    def flatten(self, signal: Float[Tensor, "b v t"], person: int) -> Float[Tensor, "b n"]:
        """Return the numbers voxel by voxel."""
        return signal.flatten(1)

    def restore(self, numbers: Float[Tensor, "b n"], person: int) -> Float[Tensor, "b v t"]:
        """Return the time series."""
        return rearrange(numbers, "b (v t) -> b v t", t=self.volumes)

    def embed(self, numbers: Float[Tensor, "b n"], subject: Int64[Tensor, " b"]) -> Float[Tensor, "b l d"]:
        """Return one token for each region and ``patch_size`` volumes, region by region."""
        signal = rearrange(numbers, "b (v s p) -> b v s p", s=self.steps, p=self.patch_size)
        region = self.region[self.regions[int(subject[0])].to(numbers.device)]
        tokens: Tensor = self.inputs(signal, subject) + region[:, None]
        return rearrange(tokens, "b r s d -> b (r s) d")

    def reconstruct(self, tokens: Float[Tensor, "b l e"], subject: Int64[Tensor, " b"]) -> Float[Tensor, "b n"]:
        """Return the numbers voxel by voxel."""
        tokens = rearrange(tokens, "b (r s) e -> b r s e", s=self.steps)
        series: Tensor = self.outputs(tokens, subject)
        return rearrange(series, "b v s p -> b (v s p)")

    def decoder_place(self, person: int) -> Float[Tensor, "l e"]:
        """Return the embedding of each token's region."""
        return self.decoder_region[self.regions[person].to(self.decoder_region.device)].repeat_interleave(self.steps, 0)

    def token_of(self, person: int) -> Tensor:
        """Return the token of each number."""
        region = torch.repeat_interleave(torch.arange(len(self.sizes[person])), torch.tensor(self.sizes[person]))
        step = torch.arange(self.volumes) // self.patch_size
        return (region[:, None] * self.steps + step).flatten()


def make_tokens(
    kind: Kind,
    layout: Layout,
    *,
    heads: int,
    patch_size: int,
    width: int,
    decoder_width: int,
    shared_output: bool,
    common: bool,
) -> BrainTokens:
    """Make the tokens for the people of a layout.

    Args:
        kind: ``roi``, ``patch`` or ``region_time``.
        layout: Shapes and regions of the people.
        heads: ``roi``: tokens of each region.
        patch_size: ``patch``: voxels of a token; ``region_time``: volumes of a token.
        width: D of the encoder.
        decoder_width: Width of the decoder.
        shared_output: ``roi``: whether all regions share the output convolution.
        common: Whether the voxels of all people are the same places of a common brain, with the same weights.

    Raises:
        ContractError: Data that such tokens cannot be made of.
    """
    subjects = layout["subjects"]
    if layout["modality"] != "fmri":
        raise ContractError(f"this stage is for fMRI, the data set is {layout['modality']}; choose another --data")
    dimensions = {len(layout["shape"][subject]) for subject in subjects}
    if dimensions != {2 if kind == "region_time" else 1}:
        wanted = "time series (voxels x volumes)" if kind == "region_time" else "responses (one number a voxel)"
        found = layout["shape"][subjects[0]]
        raise ContractError(f"tokens={kind} are made of {wanted}, found samples of shape {found}; choose other tokens")
    # a data set that names no regions is one region
    rois = {subject: layout["rois"][subject] or {"all": layout["shape"][subject][0]} for subject in subjects}
    if common:
        first = rois[subjects[0]]
        other = next((subject for subject in subjects if list(rois[subject].items()) != list(first.items())), None)
        if other is not None:
            raise ContractError(
                f"voxels=common needs the same regions in all people: sub-{subjects[0]} has {dict(first)}, sub-{other} "
                f"{dict(rois[other])}; set --model.init_args.voxels=own"
            )
        rois = {"common": first}
    if kind == "roi":
        return RoiTokens(rois, heads=heads, width=width, decoder_width=decoder_width, shared_output=shared_output)
    if kind == "patch":
        voxels = {person: sum(own.values()) for person, own in rois.items()}
        return PatchTokens(voxels, patch_size=patch_size, width=width, decoder_width=decoder_width)
    volumes = {layout["shape"][subject][1] for subject in subjects}
    if len(volumes) > 1:
        raise ContractError(f"tokens=region_time needs segments of one length, found {sorted(volumes)} volumes")
    return RegionTimeTokens(
        rois, volumes=volumes.pop(), patch_size=patch_size, width=width, decoder_width=decoder_width
    )


def _union(rois: Mapping[str, Rois]) -> list[str]:
    """Names of all people's regions, in the order in which they appear first."""
    return list(dict.fromkeys(name for own in rois.values() for name in own))


def _rows_of_regions(own: Rois, names: list[str], each: int) -> Tensor:
    """Rows of the table of positions of one person's regions, ``each`` a region."""
    first = np.array([names.index(name) * each for name in own])
    return torch.from_numpy((first[:, None] + np.arange(each)).ravel())
