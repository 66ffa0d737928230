"""`sever synth`: a small steel data set, drawn."""

from pathlib import Path

from sever.data_loader.synth.write import draw_dataset
from sever.utils.logger import print_lines


def synth(folder: Path, n: int, seed: int, layout: str, size: tuple[int, int]) -> None:
    """Draw a data set in the Severstal layout, and print what was written; see `draw_dataset`."""
    print_lines([str(path) for path in draw_dataset(folder, n, seed, layout, size)])
