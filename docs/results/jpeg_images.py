"""Imagenette's photographs at 32 by 32 pixels, as they are (PNG) and stored as the CIFAR-10 files at hand.

Each photograph is cut to its middle square, reduced by averaging (Pillow's box filter) and written twice:
without loss, and as JPEG of quality 75 with colours at half the resolution, which the headers of those files
name. Both are laid out as the data set `cifar10` reads a folder: `OUTPUT/png/cifar10/train/CLASS/NAME.png`.

    python docs/results/jpeg_images.py DATA/imagenette OUTPUT
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image

SIZE = (32, 32)
SPLITS = {"train": "train", "val": "test"}
STORED = {"png": {}, "jpeg": {"quality": 75, "subsampling": "4:2:0"}}


def reduced(image: Image.Image) -> Image.Image:
    """The middle square of ``image`` at 32 by 32 pixels, each the mean of what it covers."""
    side = min(image.size)
    left, upper = (image.width - side) // 2, (image.height - side) // 2
    square = (left, upper, left + side, upper + side)
    return image.convert("RGB").resize(SIZE, Image.Resampling.BOX, box=square)


def write(photograph: Path, output: Path) -> None:
    """Write ``photograph``, reduced, in each way of storing it."""
    split, label = SPLITS[photograph.parent.parent.name], photograph.parent.name
    with Image.open(photograph) as image:
        small = reduced(image)
    for kind, options in STORED.items():
        folder = output / kind / "cifar10" / split / label
        folder.mkdir(parents=True, exist_ok=True)
        small.save(folder / f"{photograph.stem}.{kind}", **options)


def main(source: Path, output: Path) -> None:
    """Write all photographs of both splits of ``source``."""
    photographs = [
        path for split in SPLITS for path in sorted((source / split).glob("*/*")) if path.is_file()
    ]
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(write, output=output), photographs, chunksize=64))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
