"""The Natural Scenes Dataset: up to 10000 photographs seen three times each at 7 tesla (Allen et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from contracts import DataError
from datamodules.core.base import BrainDataModule, Facts
from datamodules.core.nsd_download import (
    HINT,
    beta_file,
    description_files,
    download,
    ncsnr_file,
    terms_accepted,
)
from datamodules.core.nsd_files import (
    DESIGN,
    PICTURE_TABLE,
    PICTURES,
    SESSIONS,
    SUBJECTS,
    TRIALS,
    Design,
    beta_folder,
    find_sessions,
    load_betas,
    load_design,
    load_ncsnr,
    load_voxels,
    names_of,
    parts_of,
    roi_folder,
    runs_of,
)
from datamodules.core.nsd_prepared import choose, find_averages, find_beta_tables, read_averages, read_beta_tables
from datamodules.core.raw import HDF5Pictures, Record, SignalAxes, Stimuli, Trials

FileFormat = Literal["auto", "official", "brain_diffuser", "mindeye2"]


class NSD(BrainDataModule):
    """Eight people; each saw up to 9000 photographs of COCO alone and 1000 that all of them saw, three times each.

    Three layouts are read; ``auto`` takes the first that lies in ``root``:

    - ``official``: the published folders ``nsddata``, ``nsddata_betas`` and ``nsddata_stimuli``, of them
      ``nsddata/experiments/nsd/nsd_expdesign.mat``, ``nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5`` (which stays where
      it is) and for each person ``nsddata/ppdata/subjXX/func1pt8mm/roi`` (masks) and
      ``nsddata_betas/ppdata/subjXX/func1pt8mm/betas_fithrf_GLMdenoise_RR`` (``betas_sessionNN.nii.gz`` or ``.hdf5``,
      and ``ncsnr.nii.gz`` for the noise ceiling). Single trials in percent signal change.
    - ``brain_diffuser``: ``processed_data/subjXX/nsd_{train,test}_fmriavg_nsdgeneral_subN.npy`` with ``_stim_`` and
      perhaps ``_cap_``: averages over the repetitions of the first 37 sessions, 300 times percent signal change.
    - ``mindeye2``: ``betas_all_subjXX_fp32_renorm.hdf5``, ``coco_images_224_float16.hdf5``, ``shared1000.npy``, and
      ``COCO_73k_subj_indices.hdf5`` or the archives ``wds``: single trials, z-scored within each session.

    The 1000 shared photographs are for testing: ``test`` are those shown within the first 37 sessions, 982, which is
    the test set of Brain-Diffuser and those who follow it; ``test_rest`` are the 18 others, so that
    ``split.tested=test+test_rest`` tests on all 1000 (MindEye2). Sessions differ in gain:
    ``samples.cleaning=zscore_session`` for official files. Photographs are named by their number among the 73000, from
    0 (``nsd00012``); Brain-Diffuser's, which come without number, by their pixels.

    Only the chosen people are read, each choice into a store of its own. Official files of theirs that are missing are
    downloaded once the terms are accepted, with size and format checked (no checksums are published).

    Licence: NSD data access agreement; the terms must be accepted by the user,
    https://cvnlab.slite.page/p/IB6BSeW_7o/Terms-and-Conditions

    Reference: Allen et al. (2022), A massive 7T fMRI dataset to bridge cognitive neuroscience and artificial
    intelligence, Nature Neuroscience 25, 116-126. Numbers of trials and pictures: NSD data manual, "Technical notes",
    https://cvnlab.slite.page/p/h_T_2Djeid/Technical-notes; numbers of voxels: ``nsdgeneral``.

    Args:
        root: Folder of the files.
        file_format: Which layout to read.
        sessions: Use the first so many sessions, of those who have as many (37: as the first published decoders); None
            for all. Not for ``brain_diffuser``.
        fewer_sessions: Accept people of whom only the first sessions are there; missing ones are not downloaded.
        mask: ``official``: file in the folder ``roi`` whose voxels are used.
        atlases: ``official``: files there that divide these voxels into regions; None for ``prf-visualrois`` (V1v to
            hV4, and ``rest``).
        accept_terms: Accept the terms above, have this noted in ``root`` (``NSD_TERMS_ACCEPTED``), and download the
            missing files of the chosen people: up to 1 GB for each session, and 40 GB of photographs.
        **kwargs: Options of every data set (``BrainDataModule``).
    """

    name = "nsd"
    parts: ClassVar[tuple[str, ...]] = ("train", "test", "test_rest")
    facts = Facts(
        modality="fmri",
        units="percent signal change (brain_diffuser: 300 times that; mindeye2: SD within a session)",
        licence="NSD data access agreement",
        citation="Allen et al. (2022), Nature Neuroscience 25, 116-126",
        subjects=SUBJECTS,
        trials={person: TRIALS * sessions for person, sessions in SESSIONS.items()},
        stimuli=70566,
        shape={
            person: (voxels,)
            for person, voxels in zip(SUBJECTS, (15724, 14278, 15226, 13153, 13039, 17907, 12682, 14386), strict=True)
        },
    )

    def __init__(
        self,
        root: str,
        *,
        file_format: Literal["auto", "official", "brain_diffuser", "mindeye2"] = "auto",
        sessions: int | None = None,
        fewer_sessions: bool = False,
        mask: str = "nsdgeneral",
        atlases: list[str] | None = None,
        accept_terms: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        self.file_format = file_format
        self.sessions = sessions
        self.fewer_sessions = fewer_sessions
        self.mask = mask
        self.atlases = ["prf-visualrois"] if atlases is None else atlases
        self.accept_terms = accept_terms

    def conversion_options(self) -> dict[str, Any]:
        """Layout, people, sessions and voxels."""
        return {
            "file_format": self.file_format,
            "people": self.chosen_subjects,
            "sessions": self.sessions,
            "fewer_sessions": self.fewer_sessions,
            "mask": self.mask,
            "atlases": self.atlases,
        }

    def read(self, root: Path) -> Iterator[Record]:
        """Yield the pictures that were shown, then the people one after another, a session at a time."""
        most = max(SESSIONS.values())
        if self.sessions is not None and not 1 <= self.sessions <= most:
            raise DataError(f"sessions must be 1..{most}, found {self.sessions}; change --data.init_args.sessions")
        unknown = [person for person in self.chosen_subjects or () if person not in SUBJECTS]
        if unknown:
            raise DataError(
                f"unknown subjects {', '.join(unknown)}; NSD has {', '.join(SUBJECTS)}; change "
                "--data.init_args.subjects"
            )
        layout = find_layout(root, self.file_format)
        if layout == "brain_diffuser":
            known: set[str] = set()
            for person, folder in choose(find_averages(root), self.chosen_subjects, root).items():
                yield from read_averages(person, folder, known)
        elif layout == "mindeye2":
            people = choose(find_beta_tables(root), self.chosen_subjects, root)
            yield from read_beta_tables(root, people, self.sessions)
        else:
            yield from self._read_official(root)

    # ---- official ----------------------------------------------------------------------------------

    def _read_official(self, root: Path) -> Iterator[Record]:
        sessions = self._find_official(root)
        design = load_design(root / DESIGN)
        shown = [design.shown[person][: TRIALS * len(paths)] for person, paths in sessions.items()]
        rows = np.unique(np.concatenate(shown))
        pictures = HDF5Pictures(root / PICTURES, PICTURE_TABLE, rows.tolist())
        yield Stimuli(id=names_of(rows), image=pictures)
        for person, paths in sessions.items():
            yield from self._read_person(root, person, paths, design)

    def _read_person(self, root: Path, person: str, paths: list[Path], design: Design) -> Iterator[Record]:
        voxels = load_voxels(root / roi_folder(person), self.mask, self.atlases)
        ncsnr = load_ncsnr(root / ncsnr_file(person), voxels)
        yield SignalAxes(
            subject=person, rois=dict(voxels.rois), ncsnr=ncsnr, coordinates=voxels.coordinates, space=voxels.space
        )
        shown = design.shown[person]
        parts = parts_of(shown, design.shared)
        for number, path in enumerate(paths):
            trials = slice(number * TRIALS, (number + 1) * TRIALS)
            yield Trials(
                subject=person,
                signal=load_betas(path, voxels),
                stimulus=names_of(shown[trials]),
                split=parts[trials],
                session=str(number + 1),
                run=runs_of(TRIALS),
            )

    def _find_official(self, root: Path) -> dict[str, list[Path]]:
        """Files of the sessions of each person, once everything is there."""
        people = self.chosen_subjects or [person for person in SUBJECTS if (root / beta_folder(person)).is_dir()]
        accepted = terms_accepted(root, self.accept_terms)
        if not people:
            whose = ", and say whose: --data.init_args.subjects='[\"01\"]'" if accepted else ""
            raise DataError(f"no recordings in {root / 'nsddata_betas' / 'ppdata'}. {HINT}{whose}")
        needed = list(dict.fromkeys(f for p in people for f in description_files(p, self.mask, self.atlases)))
        if accepted:
            download(root, [*needed, *(ncsnr_file(person) for person in people)])
        missing = [file for file in needed if not (root / file).is_file()]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(needed)} files that describe the recordings of person {', '.join(people)} are "
                f"missing, the first is {root / missing[0]} (see also --data.init_args.mask and atlases). {HINT}"
            )
        return {person: self._find_sessions(root, person, accepted) for person in people}

    def _find_sessions(self, root: Path, person: str, accepted: bool) -> list[Path]:
        wanted = min(self.sessions or SESSIONS[person], SESSIONS[person])
        found = find_sessions(root / beta_folder(person))
        if accepted and not self.fewer_sessions:
            download(root, [beta_file(person, number) for number in range(1, wanted + 1) if number not in found])
            found = find_sessions(root / beta_folder(person))
        missing = [number for number in range(1, wanted + 1) if number not in found]
        last = max((number for number in found if number <= wanted), default=0)
        gaps = [number for number in missing if number < last]
        if gaps:
            raise DataError(
                f"sub-{person}: session {', '.join(map(str, gaps))} of {wanted} missing though later ones are there; "
                f"the first would be {root / beta_file(person, gaps[0])}, or the same as .hdf5. {HINT}"
            )
        if missing and not (self.fewer_sessions and last):
            instead = f", or use what is there: --data.init_args.sessions={last} or fewer_sessions=true" if last else ""
            raise DataError(
                f"sub-{person}: {last} of {wanted} sessions are there, the next would be "
                f"{root / beta_file(person, missing[0])}, or the same as .hdf5. {HINT}{instead}"
            )
        return [found[number] for number in range(1, last + 1)]


def find_layout(root: Path, wanted: FileFormat) -> FileFormat:
    """Return the layout of the files in a folder; ``official`` where there is none of the others."""
    if wanted != "auto":
        return wanted
    if not (root / "nsddata_betas").is_dir():
        if find_averages(root):
            return "brain_diffuser"
        if find_beta_tables(root):
            return "mindeye2"
    return "official"
