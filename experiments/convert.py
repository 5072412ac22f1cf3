"""``neuroalign convert``: convert a data set, embed its pictures and prepare its samples, without training."""

from __future__ import annotations

from collections.abc import Sequence

from datamodules import BrainDataModule
from experiments.arguments import Parser, find_data_source, import_file_class


def main(args: Sequence[str]) -> None:
    """Convert the data set that ``--data`` names and print what it holds."""
    words = [import_file_class(word) for word in args]
    find_data_source(words)
    parser = Parser(prog="neuroalign convert", description=__doc__, parser_mode="omegaconf+")
    parser.add_subclass_arguments(BrainDataModule, "data", required=True)
    config = parser.instantiate_classes(parser.parse_args(words))
    data: BrainDataModule = config.data
    layout = data.layout
    print(f"store: {data.store.folder}")
    print(f"{data.name}: {layout['modality']}, {len(data.store.stimuli)} stimuli, {len(layout['classes'])} classes")
    for subject in data.subjects:
        sides = data.trials[data.trials["subject"] == subject]["side"].value_counts()
        counts = ", ".join(f"{sides.get(side, 0)} {side}" for side in ("train", "validation", "test"))
        print(f"sub-{subject}: {'x'.join(map(str, layout['shape'][subject]))}, trials: {counts}")
    print(f"image space: {layout['embedding_space']}, {layout['embedding_width']} numbers")
