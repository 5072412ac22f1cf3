"""FrechetInception (FID): is the set of generated pictures distributed like the set of seen ones?"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from callbacks.metrics.frechet import frechet_distance
from callbacks.metrics.picture_pairs import distinct, note_of_samples
from callbacks.metrics.pictures import check_pictures
from callbacks.metrics.resampling import Estimate
from callbacks.picture_networks import PictureFeatures, PictureNetwork
from callbacks.picture_reduction import GENERATED, SEEN, by_sample, check_output, joined
from callbacks.picture_weights import load_weights, to_be_had
from callbacks.score import Part, ScoreCallback, subjects_of, to_score
from contracts import ContractError, Output, Score

FEATURES = (64, 192, 768, 2048)


class FrechetInception(ScoreCallback):
    """Frechet inception distance of generated and seen pictures (``callbacks.metrics.frechet``), less is better.

    For each sample number s over all samples of a person, then the mean over s, as in LEA (``feature: 64``). On the
    seen side each stimulus counts once however many trials show it; on the generated side each trial counts. FID is
    biased upwards by few pictures and is compared only between equal numbers of them; with fewer pictures than
    features the covariances lack full rank, which is warned of. It has no interval: drawing pictures twice biases it.

    Args:
        feature: Width of the layer of Inception: 64, 192, 768 or 2048.
        weights: ``pretrained`` (downloaded by torch-fidelity), ``random`` (seed 0, a control) or its local file
            ``pt_inception-2015-12-05-6726825d.pth``.
        antialias: Whether pictures are resized to 299 pixels with antialiasing (torchmetrics), or as TensorFlow 1
            did.
        network: Another network in place of Inception; ``feature``, ``weights`` and ``antialias`` are then not used.
        batch_size: Pictures per forward pass.

    Raises:
        ContractError: No such feature.
    """

    needs = frozenset({SEEN, GENERATED})
    table = "pictures"
    test_is_enough = True

    def __init__(
        self,
        feature: Literal[64, 192, 768, 2048] = 2048,
        weights: str = "pretrained",
        antialias: bool = True,
        network: PictureNetwork | dict[str, Any] | None = None,
        batch_size: int = 64,
    ) -> None:
        super().__init__()
        if feature not in FEATURES:
            raise ContractError(f"feature is one of {', '.join(map(str, FEATURES))}, not {feature!r}")
        self.feature = feature
        self.weights = weights
        self.antialias = antialias
        self.batch_size = batch_size
        self.network = None if network is None else PictureNetwork.of(network)
        if self.network is None:
            self.title = f"inception-{feature}"
            self.key = f"fid|{feature}|{weights}|{antialias}".replace("/", "-")
        else:
            self.title, self.key = self.network.title, f"fid|{self.network.key}"
        self._inception: nn.Module | None = None
        self._features = PictureFeatures(self.network, batch_size) if self.network is not None else None

    def reduce(self, outputs: Output) -> Output:
        """Keep the features of seen and generated pictures."""
        seen, generated = check_output(outputs)
        return {f"{self.key}.seen": self._look(seen), f"{self.key}.generated": by_sample(self._look, generated)}

    @torch.no_grad()
    def _look(self, pictures: Tensor) -> Tensor:
        if self._features is not None:
            return self._features(pictures)
        check_pictures(pictures, "pictures")
        if self._inception is None:
            self._inception = build_inception(self.feature, self.weights, antialias=self.antialias)
        network = self._inception.to(pictures.device)
        return torch.cat([network(batch) for batch in pictures.split(self.batch_size)])

    def evaluate(self, parts: Sequence[Part], *, resample: bool = True) -> list[Score]:
        """Compare the two sets of pictures of each person."""
        scores = []
        for subject in subjects_of(parts):
            stimulus = joined(parts, subject, "stimulus")
            seen, items = distinct(joined(parts, subject, f"{self.key}.seen"), stimulus)
            generated = joined(parts, subject, f"{self.key}.generated")
            width = seen.shape[1]
            if len(items) < 2:
                rank_zero_warn(f"sub-{subject} saw a single picture in this run: no Frechet distance")
                continue
            each = [frechet_distance(generated[:, s], seen) for s in range(generated.shape[1])]
            note = [note_of_samples(each), "less is better"]
            fewest = min(len(items), len(generated))
            if fewest <= width:
                few = f"only {fewest} pictures for {width} features: biased upwards, covariance without full rank"
                rank_zero_warn(f"FID of sub-{subject}: {few}")
                note.append(few)
            estimate = Estimate(
                name="fid",
                value=sum(each) / len(each),
                low=None,
                high=None,
                p_value=None,
                chance=None,
                n=len(generated),
                stimuli=len(items),
                note="; ".join(filter(None, note)),
            )
            scores.append(to_score(estimate, parts, subject=subject, ceiling=None, reason="", gallery=self.title))
        return scores


def build_inception(feature: int, weights: str, *, antialias: bool) -> nn.Module:
    """Build the Inception network of FID, torchmetrics' own.

    Raises:
        DataError: Weights that cannot be had or belong to another network.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    from torchmetrics.image.fid import NoTrainInceptionV3

    class Inception(NoTrainInceptionV3):
        def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
            # none are given while it is built
            return super().load_state_dict(state_dict, *args, **kwargs) if state_dict else None

    title = "Inception of FID"
    # its own loading would execute what is pickled in a file, so it gets an empty one and the weights come after
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)  # for weights: random
        empty = Path(folder) / "empty.pth"
        torch.save({}, empty)
        network: nn.Module = Inception("inception-v3-compat", [str(feature)], str(empty), antialias=antialias)
    if weights == "pretrained":
        with to_be_had(title, weights):
            state = torch.hub.load_state_dict_from_url(
                URL_INCEPTION_V3, map_location="cpu", weights_only=True, check_hash=True
            )
            network.load_state_dict(state)
    elif weights != "random":
        load_weights(network, weights, title=title)
    return network.eval().requires_grad_(False)
