"""LEA: pictures from recordings, ridge alignment followed by MaskGIT, with its controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from contracts import Batch, ContractError, Layout, Output
from lightning_modules.maskgit import MaskGIT
from lightning_modules.networks.row_random import row_normal, row_uniform
from lightning_modules.ridge_lea import RidgeAlignment

Condition = Literal["encoded", "shuffled", "noise"]
_SHUFFLE, _NOISE = 8, 9


class LEA(RidgeAlignment):
    """RidgeAlignment whose decoded embeddings a MaskGIT turns into pictures.

    Fitting is that of RidgeAlignment; pictures are drawn when testing and predicting. Besides those of the recordings a
    test can draw pictures of ``conditions``, from the same random numbers, so that the reliability of LEA becomes a
    number (``callbacks.Reliability``): a decoder must not make as much of noise as of a brain.

    ========== ==================================================================================================
    encoded    image -> fMRI -> image: the signal that is predicted for the picture takes the place of the recording
    shuffled   the recording with its voxels (or sensors and time points) in another order
    noise      Gaussian noise with the mean and SD of the recording
    ========== ==================================================================================================

    Reference: Qian et al. (2023), LEA, sections 3.3 and 4.4 (reliability).

    Args:
        layout: Shapes of the data, linked from the datamodule.
        maskgit: Checkpoint of the MaskGIT; ``run:<stage>`` or ``run:all/<stage>`` on the command line is the finished
            run of that stage with the same data and name. Its weights become part of this stage's checkpoint.
        conditions: Which pictures beside those of the recordings a test draws.
        sampling: Arguments of MaskGIT that say how pictures are drawn (``order``, ``steps``, ``samples``,
            ``choice_temperature``, ``guidance``, ``sampling_seed``) in place of those it was trained with.
        **kwargs: Arguments of RidgeAlignment.

    Raises:
        ContractError: A MaskGIT that is not there or was trained in another image space, or arguments of ``sampling``
            that say something else.
    """

    evaluation_keys = frozenset({"image"})

    def __init__(
        self,
        layout: Layout,
        *,
        maskgit: str | dict[str, Any],
        conditions: Sequence[Condition] = (),
        sampling: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(layout, **kwargs)
        # asked for by name: RidgeAlignment does not see them where a wrapper checks the types of its arguments
        self.save_hyperparameters("maskgit", "conditions", "sampling")
        self.conditions = tuple(conditions)
        self.maskgit = self.earlier_stage(MaskGIT, maskgit, argument="maskgit", change=_checked(sampling))
        self._refuse_other_space()
        pictures = [f"{condition}." for condition in self.conditions]
        drawn = {f"{prefix}{name}" for prefix in ("", *pictures) for name in ("generated", "confidence")}
        given = RidgeAlignment.provides["test"] | drawn
        self.provides = {  # type: ignore[misc]  # what is drawn depends on the arguments
            **RidgeAlignment.provides,
            "test": given | {"image"},
            "predict": given,
        }

    def test_step(self, batch: Batch, batch_idx: int) -> Output:
        """Decode, encode and draw the pictures of a batch.

        Returns:
            What RidgeAlignment gives, ``image (B, 3, H, W)``, ``generated (B, S, 3, H, W)`` and ``confidence (B, S)``,
            the latter two also for each condition, as ``noise.generated``.
        """
        return {"image": batch["image"], **self._drawn(batch)}

    def predict_step(self, batch: Batch, batch_idx: int) -> Output:
        """Like a test, without the picture that was seen."""
        return self._drawn(batch)

    def _drawn(self, batch: Batch) -> Output:
        output: Output = self(batch)
        embeddings = {"": output["brain_embedding"]}
        for condition in self.conditions:
            signal = self.recording_of(condition, batch, predicted=output["predicted_signal"])
            embeddings[f"{condition}."] = self.decode(signal, batch["subject"])
        for prefix, embedding in embeddings.items():
            pictures, confidence = self.maskgit.generate(embedding, batch["stimulus"])
            output |= {f"{prefix}generated": pictures, f"{prefix}confidence": confidence}
        return output

    def recording_of(self, condition: Condition, batch: Batch, *, predicted: Tensor) -> Tensor:
        """What takes the place of the recordings of a batch.

        Args:
            condition: Which condition.
            batch: The recordings.
            predicted: The signals that are predicted for the pictures, ``encoded``.
        """
        signal, row = batch["signal"], batch["row"]
        if condition == "encoded":
            return predicted
        flat = signal.flatten(1)
        if condition == "shuffled":
            order = row_uniform(row, flat.shape[1], seed=0, epoch=0, stream=_SHUFFLE).argsort(dim=1)
            return flat.gather(1, order).reshape(signal.shape)
        noise = row_normal(row, flat.shape[1], seed=0, epoch=0, stream=_NOISE)
        scale = flat.std(dim=1, keepdim=True)
        return (flat.mean(dim=1, keepdim=True) + scale * noise).reshape(signal.shape)

    def _refuse_other_space(self) -> None:
        theirs, mine = self.maskgit.layout, self.layout
        # weights that were imported do not tell in which space they were trained
        same = theirs["embedding_space"] in (mine["embedding_space"], "unknown")
        if not same or theirs["embedding_width"] != mine["embedding_width"]:
            raise ContractError(
                "the MaskGIT was trained in another image space than the recordings are decoded to:\n"
                f"  MaskGIT: {theirs['embedding_space']}, {theirs['embedding_width']} numbers\n"
                f"  data:    {mine['embedding_space']}, {mine['embedding_width']} numbers\n"
                "give both the same --data.init_args.embedding, with a target that is not fitted (unit) where people "
                "saw other pictures"
            )


_SAMPLING = ("order", "steps", "samples", "choice_temperature", "guidance", "sampling_seed")


def _checked(sampling: dict[str, Any] | None) -> dict[str, Any]:
    given = {} if sampling is None else sampling
    unknown = sorted(set(given) - set(_SAMPLING))
    if unknown:
        raise ContractError(f"--model.init_args.sampling may name {', '.join(_SAMPLING)}, found {', '.join(unknown)}")
    return given
