"""The images of Imagenette at 32 x 32 pixels, as they are and stored as JPEG, in CIFAR-10's layout.

    python docs/results/jpeg_images.py IMAGENETTE OUT

IMAGENETTE has the folders train and val. Written are OUT/png/cifar10 and OUT/jpeg/cifar10 with train and
test; the second holds the first's images at the quality and chroma subsampling of the CIFAR-10 images at
hand.
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from PIL import Image

SIZE = (32, 32)
QUALITY = 75
CHROMA = "4:2:0"


def write(source: Path, part: str, out: Path) -> None:
    """Scale one image down by the mean of the pixels that each new one covers, and store it both ways."""
    with Image.open(source) as image:
        small = image.convert("RGB").resize(SIZE, Image.Resampling.BOX)
    for kind, options in (("png", {}), ("jpeg", {"quality": QUALITY, "subsampling": CHROMA})):
        target = out / kind / "cifar10" / part / source.parent.name / f"{source.stem}.{kind}"
        target.parent.mkdir(parents=True, exist_ok=True)
        small.save(target, **options)


if __name__ == "__main__":
    imagenette, out = map(Path, sys.argv[1:])
    with ProcessPoolExecutor() as pool:
        done = [
            pool.submit(write, image, part, out)
            for folder, part in (("train", "train"), ("val", "test"))
            for image in sorted((imagenette / folder).glob("*/*.*"))
        ]
        for one in done:
            one.result()
