"""FeatureBank: frozen embeddings of pictures, computed once per stimulus and looked up by its hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from einops import reduce
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from contracts import DataError, reason_of
from datamodules.core.atomic import build_once
from datamodules.core.readers import existing

Array = NDArray[Any]
Embedder = Callable[[list[Array]], Float[Tensor, "n d"]]
Pooling = Literal["auto", "cls", "mean", "max", "flatten"]


@dataclass(frozen=True)
class EmbeddingOptions:
    """The image space.

    Attributes:
        model: ``pixels``, ``timm:<name>`` or ``open_clip:<name>``, where an open_clip name may also be a folder
            (``local-dir:<folder>``, what ``make train-clip`` leaves) or a repository (``hf-hub:<owner>/<name>``);
            ``classes``: no picture is embedded, a stimulus is the indicator of its class; ``none``: no embedding.
        weights: For ``timm``: ``pretrained`` or a local file; for ``open_clip``: a tag such as
            ``laion2b_s32b_b79k`` or a local file; ``random`` (seed 0) for either, as a control.
        layer: Dotted name of a module of the network whose output is taken instead of the last one.
        pooling: How a layer's output becomes a vector: ``cls`` (first token), ``mean`` or ``max`` over
            tokens or positions, ``flatten``; ``auto`` keeps vectors, averages positions, takes the first token.
        image_size: ``pixels``: side in pixels to which pictures are resized.
        grey: ``pixels``: one luminance channel instead of RGB.
        target: Fitted on the training stimuli: ``none``, ``unit``, ``center``, ``zscore``, ``pca(k)``,
            ``pca(k, whiten)``, or several joined by ``|``.
        templates: For ``open_clip`` and classes: sentences with ``{}`` in place of the class name, which make a
            gallery of texts (``text``) for zero-shot classification; empty for no such gallery. Other models have no
            texts, and pay no regard to them.
        batch_size: Pictures per forward pass.
    """

    model: str = "pixels"
    weights: str | None = None
    layer: str | None = None
    pooling: Pooling = "auto"
    image_size: int = 32
    grey: bool = False
    target: str = "none"
    templates: list[str] = field(default_factory=list)
    batch_size: int = 64


class FeatureBank:
    """Embeddings of pictures in one space, in a folder of shards.

    A space is identified by a hash of (model, weights, layer, pooling, transform); a picture by its SHA-256.
    Each shard is one ``.safetensors`` file with ``embedding (n, D)`` and ``sha256 (n, 32)``, written whole
    and renamed, so that processes can add shards at the same time.

    Args:
        folder: Folder of all banks; this bank is the subfolder named by its space.
        options: The image space.
    """

    def __init__(self, folder: Path, options: EmbeddingOptions) -> None:
        self.options = options
        self.facts = space_facts(options)
        digest = hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()[:12]
        model = self.facts["model"]
        name = model if options.layer is None else f"{model}.{options.layer}"
        self.space = f"{name.replace(':', '-').replace('/', '-')}-{digest}"
        self.folder = folder / self.space

    def build(self, sha256: Sequence[str], image: Callable[[int], Array]) -> None:
        """Compute what is missing.

        Args:
            sha256: Hashes of the pictures that will be looked up.
            image: Gives the picture at a position of ``sha256``, RGB uint8 ``(H, W, 3)``.

        Raises:
            DataError: A model or weights that do not exist, a damaged bank, a picture that gives NaN.
        """
        build_once(self.folder / "description.json", self._describe)
        known = self._index()
        missing = {key: row for row, key in enumerate(sha256) if key not in known}
        if not missing:
            return
        keys = sorted(missing)
        shard = hashlib.sha256("".join(keys).encode()).hexdigest()[:16]

        def write(path: Path) -> None:
            embed = build_embedder(self.options)
            parts = [embed([image(missing[key]) for key in batch]) for batch in self._batches(keys)]
            embedding = torch.cat(parts).to(torch.float32).numpy()
            wrong = np.flatnonzero(~np.isfinite(embedding).all(axis=1))
            if len(wrong):
                raise DataError(f"{self.space}: {len(wrong)} of {len(keys)} pictures give NaN or infinite embeddings")
            hashes = np.frombuffer(bytes.fromhex("".join(keys)), np.uint8).reshape(len(keys), 32)
            try:
                save_file({"embedding": embedding, "sha256": hashes}, path)
                path.chmod(0o644)  # the library writes files that only their owner can read
            except SafetensorError as error:
                raise OSError(str(error)) from error  # a full disk; build_once says what to do

        build_once(self.folder / f"{shard}.safetensors", write)

    def lookup(self, sha256: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Return the embeddings ``(N, D)`` float32 of the pictures with these hashes.

        Raises:
            DataError: A picture without embedding, a damaged shard, or a bank of another space.
        """
        index = self._index()
        missing = [key for key in sha256 if key not in index]
        if missing:
            raise DataError(f"{self.folder}: no embedding of {len(missing)} pictures, the first is {missing[0]}")
        shards = {shard: self._shard(shard) for shard in {index[key][0] for key in sha256}}
        return np.stack([shards[index[key][0]][index[key][1]] for key in sha256])

    def _batches(self, keys: Sequence[str]) -> Iterator[Sequence[str]]:
        size = self.options.batch_size
        starts = range(0, len(keys), size)
        for start in track(starts, description=f"embedding with {self.options.model}", transient=True):
            yield keys[start : start + size]

    def _describe(self, path: Path) -> None:
        path.write_text(json.dumps(self.facts, indent=2, sort_keys=True) + "\n")

    def _index(self) -> dict[str, tuple[Path, int]]:
        """Hash of each picture -> shard and row; refuses a folder that holds another space."""
        description = existing(self.folder / "description.json")
        try:
            found = json.loads(description.read_text())
        except json.JSONDecodeError as error:
            raise DataError(f"{description} is damaged ({error}); delete the folder {self.folder}") from None
        if found != self.facts:
            raise DataError(
                f"{self.folder} was made with {found}, asked for {self.facts}; embeddings of different models are "
                "never mixed: delete the folder or change --data.init_args.embedding"
            )
        index: dict[str, tuple[Path, int]] = {}
        for shard in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(shard, framework="numpy") as file:
                    hashes = file.get_tensor("sha256")
            except (SafetensorError, OSError) as error:
                raise DataError(f"{shard} is damaged ({error}); delete it, it will be computed again") from error
            text = hashes.tobytes().hex()
            index |= {text[64 * row : 64 * row + 64]: (shard, row) for row in range(len(hashes))}
        return index

    def _shard(self, shard: Path) -> Array:
        with safe_open(shard, framework="numpy") as file:
            embedding: Array = file.get_tensor("embedding")
        return embedding


def build_embedder(options: EmbeddingOptions) -> Embedder:
    """Return a function from pictures, RGB uint8 ``(H, W, 3)`` each, to embeddings ``(n, D)``.

    Raises:
        DataError: Unknown model, weights or layer; the message says what would be accepted.
    """
    kind, _, name = options.model.partition(":")
    if kind == "pixels":
        return lambda images: torch.stack([_pixels(image, options) for image in images])
    if kind == "timm":
        network, transform = _timm(name, options.weights)
    else:
        clip, transform = load_open_clip(name, options.weights)
        network = _ImageTower(clip)
    network.eval().requires_grad_(False)
    take = _LayerOutput(network, options.layer) if options.layer else network

    @torch.inference_mode()
    def embed(images: list[Array]) -> Tensor:
        batch = torch.stack([transform(Image.fromarray(image)) for image in images])
        return pool(take(batch), options.pooling).float()

    return embed


def pool(output: Tensor, pooling: Pooling) -> Float[Tensor, "n d"]:
    """Turn a layer's output, ``(n, D)``, ``(n, tokens, D)`` or ``(n, D, h, w)``, into one vector a picture.

    Raises:
        DataError: A pooling that the output's shape does not allow.
    """
    if pooling == "flatten":
        return output.flatten(1)
    if output.ndim == 2 and pooling == "auto":
        return output
    if output.ndim == 3:
        if pooling in ("auto", "cls"):
            return output[:, 0]
        return reduce(output, "n t d -> n d", pooling)
    if output.ndim == 4 and pooling != "cls":
        return reduce(output, "n d h w -> n d", "mean" if pooling == "auto" else pooling)
    raise DataError(f"pooling {pooling!r} does not fit an output of shape {tuple(output.shape)}; try auto or flatten")


class _LayerOutput:
    """Runs a network and returns what one of its modules gave out."""

    def __init__(self, network: nn.Module, layer: str) -> None:
        modules = dict(network.named_modules())
        if layer not in modules:
            names = [name for name in modules if name.count(".") <= layer.count(".")]
            raise DataError(f"no layer {layer!r}; layers of that depth: {', '.join(names[1:40])}")
        self.network = network
        self.output: Tensor | None = None
        modules[layer].register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.output = output[0] if isinstance(output, tuple) else output

    def __call__(self, batch: Tensor) -> Tensor:
        self.output = None
        self.network(batch)
        if self.output is None:
            raise DataError("the chosen layer did not run on a picture; choose a layer of the image tower")
        return self.output


class _ImageTower(nn.Module):
    """The image side of a CLIP model as a plain network."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.visual = clip.visual
        self._encode = clip.encode_image

    def forward(self, batch: Tensor) -> Tensor:
        embedding: Tensor = self._encode(batch)
        return embedding


def _pixels(image: Array, options: EmbeddingOptions) -> Tensor:
    picture = Image.fromarray(image).convert("L" if options.grey else "RGB")
    size = (options.image_size, options.image_size)
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.BOX if picture.width > size[0] else Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(picture, np.float32) / 255).flatten()


def _timm(name: str, weights: str | None) -> tuple[nn.Module, Any]:
    import timm
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform
    from timm.models import load_checkpoint

    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('_')[0].split('.')[0]}*")[:8]) or "see timm.list_models()"
        raise DataError(f"timm has no model {name!r}; close names: {close}")
    file = _weights_file(weights)
    if weights not in ("pretrained", "random") and file is None:
        raise DataError(f"timm:{name}: weights must be 'pretrained', 'random' or a local file, found {weights!r}")
    with torch.random.fork_rng(devices=[]), _usable(f"timm:{name}", weights):
        torch.manual_seed(0)  # for weights: random
        network = timm.create_model(name, pretrained=weights == "pretrained", num_classes=0)
        if file:
            load_checkpoint(network, str(file), filter_fn=_without_classifier, weights_only=True)
    return network, create_transform(**resolve_model_data_config(network), is_training=False)


def _without_classifier(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Leave out the weights of a classifier that the network was built without."""
    config: Any = network.pretrained_cfg
    classifier = config["classifier"]  # a name, or several
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    own = network.state_dict()
    unused = tuple(f"{name}." for name in names)
    return {key: value for key, value in state.items() if key in own or not key.startswith(unused)}


@contextmanager
def _usable(model: str, weights: str | None) -> Iterator[None]:
    """Say clearly that weights are damaged, of another model or not to be had."""
    try:
        yield
    # timm and open_clip report these with many types: UnpicklingError, RuntimeError, KeyError, OSError ...
    except Exception as error:
        raise DataError(
            f"{model}: cannot use the weights {weights!r} ({reason_of(error)}). They are damaged, belong to another "
            "model, could not be downloaded, or hold pickled objects, which are never executed; change "
            "--data.init_args.embedding.weights"
        ) from error


def load_open_clip(name: str, weights: str | None) -> tuple[Any, Any]:
    """Return an open_clip model, both towers, and its picture transform.

    Raises:
        DataError: Unknown model, or weights that are not there or cannot be used.
    """
    import open_clip

    if _clip_source(name, weights) is None and name not in open_clip.list_models():
        raise DataError(
            f"open_clip has no model {name!r}; it has {', '.join(open_clip.list_models()[:12])} ..., folders "
            "(open_clip:local-dir:<folder>) and repositories (open_clip:hf-hub:<owner>/<name>)"
        )
    file = _weights_file(weights)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if _clip_source(name, weights) is None and file is None and weights != "random" and weights not in tags:
        raise DataError(
            f"open_clip:{name}: weights must be one of {', '.join(tags) or 'no tags'}, 'random' or a local file, "
            f"found {weights!r}"
        )
    with torch.random.fork_rng(devices=[]), _usable(f"open_clip:{name}", weights):
        torch.manual_seed(0)  # for weights: random
        if weights == "random":
            clip, _, transform = open_clip.create_model_and_transforms(name)
        else:
            clip, transform = open_clip.create_model_from_pretrained(name, str(file) if file else weights)
    return clip, transform


def _clip_source(name: str, weights: str | None) -> Path | str | None:
    """Folder or repository that holds an open_clip model whole, configuration and weights; None for a name.

    Raises:
        DataError: No such folder, or weights named beside it.
    """
    schema, _, source = name.partition(":")
    if schema not in ("local-dir", "hf-hub"):
        return None
    if weights is not None:
        raise DataError(f"open_clip:{name} has its own weights: remove embedding.weights (found {weights!r})")
    if schema == "hf-hub":
        return source
    folder = Path(source).expanduser()
    if not (folder / "open_clip_config.json").is_file():
        raise DataError(
            f"no open_clip model in {folder.absolute()} (open_clip_config.json and open_clip_model.safetensors); "
            "Phantom's own is made by 'make train-clip', another image space is chosen with "
            "--data.init_args.embedding.model"
        )
    return folder


def _weights_file(weights: str | None) -> Path | None:
    """Return the local file that ``weights`` names, or None for a tag; a path that is not there is an error."""
    if weights is None:
        return None
    path = Path(weights).expanduser()
    if path.is_file():
        return path
    if path.suffix in (".pt", ".pth", ".bin", ".safetensors", ".ckpt") or len(path.parts) > 1:
        raise DataError(f"no weights file {path.absolute()}; change --data.init_args.embedding.weights")
    return None


def space_facts(options: EmbeddingOptions) -> dict[str, Any]:
    """Return what identifies the space: everything that changes an embedding, and nothing else.

    Raises:
        DataError: Options that do not fit each other.
    """
    kind, _, name = options.model.partition(":")
    if kind not in ("pixels", "timm", "open_clip") or (kind != "pixels") != bool(name):
        raise DataError(
            "embedding model must be pixels, timm:<name> or open_clip:<name>, found "
            f"{options.model!r} (or classes, or none; data sets without pictures embed none)"
        )
    facts = {k: v for k, v in asdict(options).items() if k not in ("target", "templates", "batch_size")}
    if kind == "pixels":
        if options.weights or options.layer:
            raise DataError("pixels have neither weights nor layers; remove embedding.weights and embedding.layer")
        return {key: facts[key] for key in ("model", "image_size", "grey")}
    folder = _clip_source(name, options.weights) if kind == "open_clip" else None
    if isinstance(folder, Path):
        # the same model is the same space, wherever its folder stands
        digest = hashlib.sha256()
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            digest.update(path.read_bytes())
        facts |= {"model": "open_clip:local-dir", "weights": digest.hexdigest()}
    file = _weights_file(options.weights)
    if file is not None:
        facts["weights"] = hashlib.sha256(file.read_bytes()).hexdigest()
    return {key: facts[key] for key in ("model", "weights", "layer", "pooling")}
