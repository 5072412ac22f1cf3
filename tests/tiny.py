"""What makes each shipped data set tiny, and the layouts of data sets of published size."""

from __future__ import annotations

from contracts import Layout

TINY_PHANTOM = (
    '--data.init_args.phantom={"people": 2, "train_images": 1, "test_images": 1, "train_repetitions": 1, '
    '"test_repetitions": 1, "sessions": 1}',
    "--data.init_args.loader.batch_size=16",
)
PARTS = ("eeg", "meg", "fmri")
TINY_PIXELS = (
    '--data.init_args.embedding={"model": "pixels", "image_size": 8, "weights": null, "target": "pca(8)", '
    '"templates": []}',
)
TINY_PICTURES = ('--data.init_args.pictures={"train": 2, "validation": 1, "test": 1}',)
SMALL_BATCHES = "--data.init_args.loader.batch_size=4"
# by the name of the data set, which may stand in several files: what makes it tiny
TINY = {
    "phantom": (*TINY_PHANTOM, *TINY_PIXELS),
    "phantom_eeg": (*TINY_PHANTOM, *TINY_PIXELS),
    "phantom_meg": (*TINY_PHANTOM, *TINY_PIXELS),
    "phantom_multimodal": (
        *(word.replace("init_args.", f"init_args.parts.{part}.init_args.") for part in PARTS for word in TINY_PHANTOM),
        *TINY_PIXELS,
        "--data.init_args.loader.batch_size=16",
    ),
    "phantom_pictures": (*TINY_PICTURES, "--data.init_args.loader.batch_size=16"),
    "images": (*TINY_PIXELS, "--data.init_args.views.size=16", "--data.init_args.loader.batch_size=16"),
    "vangerven2010": (),
    "miyawaki2008": (),
    "god": (*TINY_PIXELS, SMALL_BATCHES),
    "bold5000": (*TINY_PIXELS, SMALL_BATCHES),
    "haxby2001": (),
    "pieman": (SMALL_BATCHES,),
    "hcp": (SMALL_BATCHES, "--data.init_args.split.folds=3"),
    "imagenet_eeg": (*TINY_PIXELS, SMALL_BATCHES),
    "nsd": (*TINY_PIXELS, "--data.init_args.loader.batch_size=32", "--data.init_args.fewer_sessions=true"),
    "things_eeg2": (*TINY_PIXELS, SMALL_BATCHES),
    "things_meg": (*TINY_PIXELS, SMALL_BATCHES),
    "uci_eeg": (SMALL_BATCHES,),
    "eeg_recordings": (SMALL_BATCHES,),
}
# data sets of a few classes of sensor recordings, and a stage for them
FEW_CLASSES = {"uci_eeg": "contrastive_eeg_classes", "eeg_recordings": "contrastive"}
# data sets without pictures and classes, for self-supervised stages
WITHOUT_PICTURES = {"pieman": "fmri_mae_timeseries", "hcp": "fmri_mae", "hcp_parcels": "fmri_mae_timeseries"}
# data sets of pictures alone, and a stage for them
PICTURES_ALONE = {"phantom_pictures": "clip", "images": "tokenizer", "images_god_bold5000": "tokenizer"}
# patches of voxels that even tiny people have
PATCHES = {
    "mindvis": ("--model.init_args.patch_size=2",),
    "ridge_mindvis": ("--mindvis.model.init_args.patch_size=2",),
}
# voxels of the largest person of any data set that a stage meets at its shipped size
SHIPPED_SIZE = Layout(
    modality="fmri",
    subjects=["01", "02"],
    shape={"01": [15724], "02": [14278]},
    rois={"01": {}, "02": {}},
    channels=[],
    positions=[],
    sampling_rate=0.0,
    start=0.0,
    image_shape=[3, 256, 256],
    embedding_width=1024,
    embedding_space="pixels",
    train_samples={"01": 9000, "02": 9000},
    classes=[],
    protocol="by_stimulus",
    fold=0,
    folds=1,
    preparation={},
    training_set="0",
    transductive=False,
)
SERIES = SHIPPED_SIZE | {
    "shape": {"01": [100, 10], "02": [100, 10]},
    "rois": {name: {f"factor-{i}": 1 for i in range(100)} for name in ("01", "02")},
    "sampling_rate": 1 / 1.5,
}
SEVERAL = SHIPPED_SIZE | {
    "modality": "several",
    "subjects": [f"{part}-{name}" for part in PARTS for name in ("01", "02")],
    "parts": {
        "eeg": SHIPPED_SIZE | {"modality": "eeg", "shape": {"01": [128, 440], "02": [128, 440]}},
        "meg": SHIPPED_SIZE | {"modality": "meg", "shape": {"01": [271, 281], "02": [271, 281]}},
        "fmri": SHIPPED_SIZE,
    },
}
SEVERAL["shape"] = {f"{part}-{name}": SEVERAL["parts"][part]["shape"][name] for part in PARTS for name in ("01", "02")}
CLASSES_OF_EEG = SHIPPED_SIZE | {
    "modality": "eeg",
    "shape": {"01": [61, 64], "02": [61, 64]},
    "sampling_rate": 64.0,
    "embedding_width": 3,
    "classes": ["first", "matching", "non-matching"],
}
PICTURES = SHIPPED_SIZE | {
    "modality": "image",
    "subjects": ["pictures"],
    "shape": {"pictures": [3, 64, 64]},
    "image_shape": [3, 64, 64],
    "preparation": {"context_length": "32"},
}
# by the name of the data set: what a stage that is trained on it meets, where that is no fMRI
SPECIAL = {"phantom_pictures": PICTURES, "pieman": SERIES, "uci_eeg": CLASSES_OF_EEG, "phantom_multimodal": SEVERAL}
