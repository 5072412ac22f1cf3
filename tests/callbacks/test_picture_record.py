"""Small copies of what was seen and generated: the right ones under the right numbers, whole or refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from callbacks import PictureRecord, Pictures, load_pictures
from callbacks.picture_record import save_pictures
from contracts import DataError, Output
from tests.callbacks.pictures import Recorded, Replay, context, decoded, output, photographs
from tests.lightning_modules.fitting import short_trainer

NAMES = frozenset({"image", "generated"})


class Shown(Recorded):
    """Recordings whose stimuli have names and pictures; stimulus ``10 + 3 i`` is picture ``i``."""

    def __init__(self, people: list[Output], about: Any, seen: Tensor | None) -> None:
        super().__init__(people, about)
        self.seen = seen

    def stimulus_name(self, number: int) -> str:
        return f"photograph {number}"

    def picture(self, number: int) -> Any:
        return None if self.seen is None else self.seen[(number - 10) // 3].permute(1, 2, 0).numpy()


def recorded(folder: Path, people: list[Output], seen: Tensor | None, *, names: tuple[str, ...] = ("01",)) -> Pictures:
    about = context(people=names)
    module = Replay(about.layout, NAMES)
    short_trainer(folder, PictureRecord(side=24)).test(module, datamodule=Shown(people, about, seen), verbose=False)
    return load_pictures(folder / "pictures.safetensors")


def decoded_bytes(encoded: bytes) -> Tensor:
    with Image.open(io.BytesIO(encoded)) as picture:
        return torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).permute(2, 0, 1)


def test_each_picture_stands_under_its_number(tmp_path: Path) -> None:
    seen = photographs(12, side=16)
    made = [decoded(seen, 2, seed=person) for person in range(2)]
    people = [output(seen, made[person], person=person) for person in range(2)]
    found = recorded(tmp_path, people, seen, names=("01", "02"))
    assert found.names == {10 + 3 * i: f"photograph {10 + 3 * i}" for i in range(12)}
    # pictures this small are kept without loss
    for i in range(12):
        torch.testing.assert_close(decoded_bytes(found.seen[10 + 3 * i]), seen[i])
        for person, name in enumerate(("01", "02")):
            for sample in range(2):
                torch.testing.assert_close(decoded_bytes(found.generated[name][i][sample]), made[person][i, sample])
    assert [len(rows) for rows in found.generated.values()] == [12, 12]


def test_large_pictures_become_small_ones(tmp_path: Path) -> None:
    seen = photographs(3, side=80)
    record = recorded(tmp_path, [output(seen, decoded(seen, 1, noise=0.0))], seen)
    for i in range(3):
        for encoded in (record.seen[10 + 3 * i], record.generated["01"][i][0]):
            small = decoded_bytes(encoded)
            assert small.shape == (3, 24, 24)
            # the mean colour of a picture survives making it smaller
            difference = small.float().mean((1, 2)) - seen[i].float().mean((1, 2))
            assert difference.abs().max() < 12


def test_without_pictures_names_stay(tmp_path: Path) -> None:
    seen = photographs(3, side=16)
    people = [{name: value for name, value in output(seen, decoded(seen, 1)).items() if name != "generated"}]
    found = recorded(tmp_path, people, None)
    assert list(found.names) == [10, 13, 16]
    assert not found.seen
    assert not found.generated


def test_a_picture_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(self: Shown, number: int) -> Any:
        raise DataError(f"no file of picture {number}")

    monkeypatch.setattr(Shown, "picture", gone)
    seen = photographs(3, side=16)
    with pytest.warns(UserWarning, match="no file of picture 10"):
        found = recorded(tmp_path, [output(seen, decoded(seen, 1))], seen)
    assert not found.seen
    assert len(found.generated["01"]) == 3


def test_a_torn_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pictures.safetensors"
    save_pictures(path, Pictures({1: "one"}, {1: b"\x89PNG5"}, {"01": {0: [b"RIFFabc", b"RIFF", b"\x89PNGde"]}}))
    whole = path.read_bytes()
    assert load_pictures(path) == Pictures(
        {1: "one"}, {1: b"\x89PNG5"}, {"01": {0: [b"RIFFabc", b"RIFF", b"\x89PNGde"]}}
    )
    for end in (0, 4, 30, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"pictures\.safetensors.*test the run again"):
            load_pictures(path)
