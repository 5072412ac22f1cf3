"""TextBank: class names in sentences, embedded once by the text tower of the model that embeds the pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch.nn.functional import normalize

from contracts import DataError
from datamodules.core.atomic import build_once
from datamodules.core.features import EmbeddingOptions, load_open_clip, space_facts


class TextBank:
    """Embeddings of class names, one file for each set of names and templates.

    A class is the mean direction of its sentences (Radford et al. 2021, section 3.1.4, prompt ensembling).

    Args:
        folder: Folder of all text embeddings.
        options: The image space; its ``templates`` are the sentences.

    Raises:
        DataError: A model without a text tower, or a template without ``{}``.
    """

    def __init__(self, folder: Path, options: EmbeddingOptions) -> None:
        self.folder = folder
        self.options = options
        self.templates = list(options.templates)
        if not options.model.startswith("open_clip:") or options.layer is not None:
            raise DataError(
                f"only the embeddings of a whole open_clip model meet those of texts, found {options.model} with layer "
                f"{options.layer}; set --data.init_args.embedding.templates=[]"
            )
        if not all("{}" in template for template in self.templates):
            raise DataError(f"embedding.templates must hold {{}} where the class name goes, found {self.templates}")

    def embed(self, names: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Return the embeddings ``(N, D)`` float32, of length 1, of class names.

        Raises:
            DataError: A damaged file of embeddings, or weights that cannot be used.
        """
        sentences = [[template.format(name.replace("_", " ")) for template in self.templates] for name in names]
        facts = json.dumps([space_facts(self.options), sentences], sort_keys=True)
        file = self.folder / f"{hashlib.sha256(facts.encode()).hexdigest()[:16]}.safetensors"
        build_once(file, lambda path: self._write(path, sentences))
        try:
            return load_file(file)["embedding"]
        except (SafetensorError, KeyError) as error:
            raise DataError(f"{file} is damaged ({error}); delete it, it will be computed again") from error

    @torch.inference_mode()
    def _write(self, path: Path, sentences: Sequence[Sequence[str]]) -> None:
        import open_clip

        name = self.options.model.removeprefix("open_clip:")
        clip, _ = load_open_clip(name, self.options.weights)
        clip.eval()
        tokenize = open_clip.get_tokenizer(name)
        classes = [normalize(clip.encode_text(tokenize(list(texts))), dim=1).mean(dim=0) for texts in sentences]
        embedding = normalize(torch.stack(classes), dim=1).float().numpy()
        if not np.isfinite(embedding).all():
            raise DataError(f"open_clip:{name} gives texts NaN or infinite embeddings")
        save_file({"embedding": embedding}, path)
        path.chmod(0o644)  # the library writes files that only their owner can read
