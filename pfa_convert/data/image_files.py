"""Image files in one folder per class: listing and decoding them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfa_convert.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp", ".tif", ".tiff"}


@dataclass(frozen=True)
class ImageFiles:
    """Image files `paths[i]` with the class `classes[labels[i]]`."""

    paths: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.paths)

    def select(self, indices: Sequence[int]) -> ImageFiles:
        """Return the files at these places."""
        paths, labels = [self.paths[i] for i in indices], [self.labels[i] for i in indices]
        return ImageFiles(tuple(paths), tuple(labels), self.classes)


def list_images(folder: Path, classes: Sequence[str] | None = None) -> ImageFiles:
    """Return the images in `folder/CLASS/`, classes and files sorted by name.

    Args:
        folder: it has one folder for each class; other files are ignored.
        classes: what the classes must be among (those of the training images); the folder's own by default.

    Raises:
        UserError: if there are no images, or classes that are not among the given ones.
    """
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")
    unknown = sorted(set(found) - set(found if classes is None else classes))
    if unknown:
        problem = f"has the class {unknown[0]!r}, of which there are no training images"
        raise UserError(problem, where=str(folder), given=unknown[0], choices=classes or ())
    known = tuple(found if classes is None else classes)
    paths, labels = [], []
    for name in found:
        visible = (path for path in (folder / name).iterdir() if path.name[0] != ".")
        files = sorted(path for path in visible if path.suffix.lower() in SUFFIXES)
        paths += [str(path) for path in files]
        labels += [known.index(name)] * len(files)
    if not paths:
        raise UserError("has no images; one folder of images per class is expected", where=str(folder))
    return ImageFiles(tuple(paths), tuple(labels), known)


def decode(path: str) -> Any:
    """Return the image in a file as a PIL image in RGB; raises UserError if it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":
                raise ValueError(f"its values have more than 8 bits (mode {image.mode})")
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot be read as an image: {error}", where=path) from None
