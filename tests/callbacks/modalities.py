"""Recordings of several modalities made of the embeddings of their pictures, and their scores in plain loops."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from callbacks import CrossModal, Part
from contracts import NO_LABEL, Gallery, Layout, Score, ScoreContext
from tests.lightning_modules.fitting import made_up

WIDTH = 5
FEW = {"permutations": 19, "bootstraps": 40}


@dataclass(frozen=True)
class Person:
    """What one person saw, trial by trial, and the shape of their signals."""

    stimulus: tuple[int, ...]
    shape: tuple[int, ...]


Modalities = Mapping[str, Mapping[str, Person]]
# eeg and fmri share pictures 4..13, one of them a person; meg shares classes alone
PARTLY: Modalities = {
    "eeg": {
        "01": Person(tuple(range(14)) * 2, (2, 3)),
        "02": Person((9, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 9), (2, 3)),
    },
    "meg": {"03": Person((*range(20, 29), 20, 20), (3, 2))},
    "fmri": {"02": Person(tuple(range(4, 18)), (7,)), "04": Person((*range(17, 3, -1), 5), (4,))},
}
SAME: Modalities = {
    "eeg": {"01": Person(tuple(range(30)) * 2, (2, 3))},
    "fmri": {"02": Person(tuple(range(30)), (7,)), "03": Person(tuple(range(29, -1, -1)), (4,))},
}


def of_four(stimulus: Tensor) -> Tensor:
    return stimulus % 4


def of_its_own(stimulus: Tensor) -> Tensor:
    return stimulus + 50


def of_none(stimulus: Tensor) -> Tensor:
    return torch.full_like(stimulus, NO_LABEL)


def of_some(stimulus: Tensor) -> Tensor:
    return torch.where(stimulus % 5 == 0, NO_LABEL, stimulus % 4)


def joint_layout(modalities: Modalities) -> Layout:
    """The layout of one modality, or of several side by side."""
    parts = {
        name: Layout(
            **{**made_up({k: list(p.shape) for k, p in people.items()}, width=WIDTH), "modality": name}  # type: ignore[typeddict-item]
        )
        for name, people in modalities.items()
    }
    if len(parts) == 1:
        return next(iter(parts.values()))
    shapes = {f"{name}-{k}": list(p.shape) for name, people in modalities.items() for k, p in people.items()}
    return Layout(**{**made_up(shapes, width=WIDTH), "modality": "several", "parts": parts})  # type: ignore[typeddict-item]


def as_signal(points: Tensor, weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    return (points @ weight).reshape(len(points), *shape)


def world(
    modalities: Modalities = PARTLY,
    *,
    label: Callable[[Tensor], Tensor] = of_four,
    noise: float = 0.8,
    regressed: bool = True,
    oracle: bool = False,
    seed: int = 0,
) -> Part:
    """Recordings that are the embeddings of their pictures with noise, and what regressions would make of them."""
    random = torch.Generator().manual_seed(seed)

    def noisy(values: Tensor) -> Tensor:
        return values + noise * torch.randn(values.shape, generator=random)

    embedding = torch.randn(40, WIDTH, generator=random)
    layout = joint_layout(modalities)
    several = len(modalities) > 1
    outputs, galleries, encode, oracles = {}, {}, {}, {}
    row = 0
    for name, people in modalities.items():
        shown = torch.tensor([s for person in people.values() for s in person.stimulus]).unique()
        galleries[f"{name}.test" if several else "test"] = Gallery(embedding[shown], shown, label(shown), "image")
        # what one would expect of the modality for a picture
        turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=random)).Q
        for key, person in people.items():
            full = f"{name}-{key}" if several else key
            stimulus = torch.tensor(person.stimulus)
            seen, number = embedding[stimulus], len(stimulus)
            weight = torch.randn(WIDTH, int(np.prod(person.shape)), generator=random)
            outputs[full] = {
                "brain_embedding": noisy(seen),
                "image_embedding": seen,
                "signal": noisy(as_signal(seen, weight, person.shape)),
                "stimulus": stimulus,
                "label": label(stimulus),
                "subject": torch.full((number,), layout["subjects"].index(full)),
                "row": torch.arange(row, row + number),
            }
            if regressed:
                outputs[full] |= {
                    "decoded_embedding": noisy(seen),
                    "encoded_embedding": seen + noise * (seen @ turn),
                    **{f"{target}.brain_embedding": noisy(seen) for target in modalities},
                }
                encode[full] = functools.partial(as_signal, weight=weight, shape=person.shape)
            if oracle:
                oracles[full] = -(noisy(seen)[:, None] - embedding[shown]).square().sum(dim=2)
            row += number
    everything = torch.cat([gallery.stimulus for gallery in galleries.values()]).unique()
    if several:
        galleries["test"] = Gallery(embedding[everything], everything, label(everything), "image")
    return Part(outputs, ScoreContext(galleries=galleries, layout=layout, encode=encode, oracle=oracles))


def evaluated(part: Part, *, resample: bool = False, **options: Any) -> dict[tuple[str, str], Score]:
    """Scores by gallery, without its size, and name; each is there once."""
    scores = CrossModal(**{**FEW, **options}).in_tables([part], resample=resample)
    found = {(score.gallery.partition(" (")[0], score.name): score for score in scores}
    assert len(found) == len(scores)
    return found


# ---- plain loops -----------------------------------------------------------------------------------


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return round(float(a @ b / np.sqrt((a @ a) * (b @ b))), 11)


class Loops:
    """Every score, worked out trial by trial."""

    def __init__(self, part: Part) -> None:
        self.part = part
        layout = part.context.layout
        self.names = {
            name: [f"{name}-{k}" if "parts" in layout else k for k in own["subjects"]]
            for name, own in (layout.get("parts") or {layout["modality"]: layout}).items()
        }

    def gallery(self, name: str) -> dict[int, np.ndarray]:
        of = self.part.context.galleries[f"{name}.test" if len(self.names) > 1 else "test"]
        return {int(s): e.double().numpy() for s, e in zip(of.stimulus, of.embedding, strict=True)}

    def column(self, name: str, entry: str) -> list[Any]:
        people = [self.part.outputs[person][entry] for person in self.names[name]]
        return [value.double().numpy() for person in people for value in person]

    def seen(self, name: str) -> list[int]:
        return [int(s) for s in self.column(name, "stimulus")]

    def label(self, name: str) -> dict[int, int]:
        return dict(zip(self.seen(name), [int(x) for x in self.column(name, "label")], strict=True))

    # scores of a retrieval

    def two_way(self, name: str, trials: list[tuple[np.ndarray, int]]) -> float:
        pictures = self.gallery(name)
        scores = []
        for found, about in trials:
            own = cosine(found, pictures[about])
            others = [cosine(found, e) for s, e in pictures.items() if s != about]
            scores.append(np.mean([1.0 if own > other else 0.5 if own == other else 0.0 for other in others]))
        return float(np.mean(scores))

    def nearest_picture(self, name: str, query: np.ndarray) -> np.ndarray:
        return max(self.gallery(name).values(), key=lambda e: cosine(query, e))

    def nearest_recording(self, name: str, query: np.ndarray) -> np.ndarray:
        """The picture of the recording that is the nearest."""
        recordings = zip(self.column(name, "brain_embedding"), self.column(name, "image_embedding"), strict=True)
        return max(recordings, key=lambda pair: cosine(query, pair[0]))[1]  # type: ignore[no-any-return]

    def decoding(self, name: str, key: str) -> dict[str, float]:
        pictures, label = self.gallery(name), self.label(name)
        queries = list(zip(self.column(name, key), self.seen(name), strict=True))
        similarity = [({s: cosine(query, e) for s, e in pictures.items()}, about) for query, about in queries]
        scores = {"two_way": self.two_way(name, [(self.nearest_picture(name, q), about) for q, about in queries])}
        ranked = self.ranked(similarity, label)
        return {**scores, **{{"two_way": "rank_two_way"}.get(k, k): value for k, value in ranked.items()}}

    @staticmethod
    def ranked(similarity: list[tuple[dict[int, float], int]], label: dict[int, int]) -> dict[str, float]:
        found: dict[str, list[float]] = {}
        for own, about in similarity:
            better = [s for s, value in own.items() if value > own[about]]
            found.setdefault("two_way", []).append(1 - len(better) / (len(own) - 1))
            best = max(value for s, value in own.items() if label[s] == label[about])
            for k in (1, 5):
                found.setdefault(f"top_{k}", []).append(len(better) < k)
                found.setdefault(f"class_top_{k}", []).append(sum(value > best for value in own.values()) < k)
            others = [value for s, value in own.items() if label[s] != label[about]]
            found.setdefault("class_two_way", []).append(
                np.mean([own[about] > value for value in others]) if others else np.nan
            )
        return {name: float(np.mean(values)) for name, values in found.items()}

    def encoding(self, name: str, key: str) -> float:
        query = dict(zip(self.seen(name), self.column(name, key), strict=True))
        return self.two_way(name, [(self.nearest_recording(name, q), about) for about, q in query.items()])

    def conversion(self, source: str, target: str, key: str) -> float:
        queries = zip(self.column(source, key), self.seen(source), strict=True)
        return self.two_way(source, [(self.nearest_recording(target, q), about) for q, about in queries])

    def pearson(self, source: str, target: str, point: str, by: str) -> float:
        """Mean correlation over voxels of all people, of the means for each picture (or class)."""
        about = set.intersection(
            *({int(k) for k in self.part.outputs[p][by]} for p in self.names[target]),
            {int(k) for k in self.column(source, by)},
        )
        keys = [int(k) for k in self.column(source, by)]
        points = np.array(
            [
                np.mean([e for e, k in zip(self.column(source, point), keys, strict=True) if k == one], axis=0)
                for one in sorted(about)
            ]
        )
        correlations = []
        for person in self.names[target]:
            output = self.part.outputs[person]
            predicted = self.part.context.encode[person](torch.from_numpy(points).float()).flatten(1).numpy()
            measured = np.array(
                [output["signal"].flatten(1)[output[by] == one].mean(dim=0).numpy() for one in sorted(about)]
            )
            correlations += [np.corrcoef(predicted[:, v], measured[:, v])[0, 1] for v in range(measured.shape[1])]
        return float(np.mean(correlations))
