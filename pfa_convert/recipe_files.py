"""Recipe files: found by path or packaged name, laid over what they extend, one for all of its variants.

A file may have `variants:`, named axes of named changes: `variants: {rule: {fa: {...}, pfa: {...}}}` in
`mnist-mlp.yaml` makes the recipes `mnist-mlp-fa` and `mnist-mlp-pfa`. A file that extends another has its
variants too, each the base's variant with the file's own changes laid over it; it may add axes and
variants, and leave one out by `NAME: null`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pfa_convert.errors import UserError
from pfa_convert.recipe_text import merge, read_mapping

TABLES = {
    "mnist": "mnist-mlp",
    "sparse": "mnist-sparse",
    "cifar10": "cifar10-resnet20",
    "imagenet": "imagenet-resnet18",
}
"""The paper's tables, by the recipe file that each is."""

Choice = Mapping[str, str]
"""A variant's name on each axis."""


@dataclass(frozen=True)
class RecipeFile:
    """A file, its own content and variants, and what it extends: a file and one of its variants, or none."""

    path: Path
    own: dict[str, Any]
    variants: dict[str, dict[str, dict[str, Any] | None]]
    base: tuple[RecipeFile, Choice] | None

    def axes(self) -> dict[str, list[str]]:
        """Return the names of the variants on each axis, the base's first."""
        inherited = self.base[0].axes() if self.base and not self.base[1] else {}
        for axis, named in self.variants.items():
            known = dict.fromkeys([*inherited.get(axis, []), *named])
            inherited[axis] = [name for name in known if named.get(name, {}) is not None]
        return inherited

    def content(self, choice: Choice) -> dict[str, Any]:
        """Return one variant's content: the base's, then the file's, then the variant's changes."""
        base_file, base_choice = self.base or (None, {})
        content = merge(base_file.content(base_choice or choice) if base_file else {}, self.own)
        for axis, name in choice.items():
            content = merge(content, self.variants.get(axis, {}).get(name) or {})
        return content

    def choices(self) -> Iterator[Choice]:
        """Yield every variant; the file itself if it has none."""
        axes = self.axes()
        for names in product(*axes.values()):
            yield dict(zip(axes, names, strict=True))


def packaged_files() -> dict[str, Path]:
    """Return the recipe files that come with the package, by name."""
    folder = _folder()
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))} if folder else {}


def schema_file() -> Path:
    """Return the JSON schema of recipes, which comes with them."""
    return (_folder() or Path()) / "schema.json"


def _folder() -> Path | None:
    here = Path(__file__).resolve().parent
    return next((f for f in (here / "recipes", here.parent / "recipes") if f.is_dir()), None)


def packaged_recipes(
    begun: str | None = None, extending: tuple[Path, ...] = ()
) -> dict[str, tuple[RecipeFile, Choice]]:
    """Return every recipe that comes with the package, by name: each variant of each file.

    With `begun`, only those of files whose name it begins with, and no other file is read; `extending` are
    the files that lead here, as for `read_file`.
    """
    return {
        "-".join([stem, *choice.values()]): (file, choice)
        for stem, path in packaged_files().items()
        if begun is None or begun == stem or begun.startswith(f"{stem}-")
        for file in [read_file(path, extending)]
        for choice in file.choices()
    }


def find_recipe(source: str | Path) -> tuple[RecipeFile, Choice]:
    """Return the recipe of a path, of `path:variant`, or of a packaged name.

    Raises:
        UserError: if there is none, or the file is no recipe.
    """
    return _find(source, ())


def read_file(path: Path, extending: tuple[Path, ...] = ()) -> RecipeFile:
    """Return the file at a path, and those it extends; `extending` are the files that lead to it.

    Raises:
        UserError: if a file cannot be read, extends itself, or its `extends` or `variants` are malformed.
    """
    if path.resolve() in extending:
        raise UserError("extends itself", where=str(path))
    own = read_mapping(path)
    extends = own.pop("extends", None)
    variants = _checked_variants(own.pop("variants", {}), str(path))
    if extends is None:
        return RecipeFile(path, own, variants, None)
    if not isinstance(extends, str):
        raise UserError(f"key 'extends': not the name of a recipe: {extends!r}", where=str(path))
    named, colon, variant = extends.rpartition(":") if ":" in extends else (extends, "", "")
    beside = (path.parent / named, path.parent / f"{named}.yaml")
    source = next((f"{file}{colon}{variant}" for file in beside if file.is_file()), extends)
    return RecipeFile(path, own, variants, _find(source, (*extending, path.resolve())))


def _find(source: str | Path, extending: tuple[Path, ...]) -> tuple[RecipeFile, Choice]:
    path, colon, variant = str(source).rpartition(":")
    if Path(source).is_file():
        return read_file(Path(source), extending), {}
    if colon and Path(path).is_file():
        file = read_file(Path(path), extending)
        return file, _chosen(file, variant, str(source))
    if Path(source).is_dir():
        raise UserError("is a folder, not a recipe", where=str(source))
    files = packaged_files()
    if str(source) in files:
        return read_file(files[str(source)], extending), {}
    packaged = packaged_recipes(str(source), extending)
    if str(source) not in packaged:
        choices = [*files] if extending else [*files, *packaged_recipes()]
        raise UserError(f"unknown recipe {str(source)!r}", given=str(source), choices=choices)
    return packaged[str(source)]


def _chosen(file: RecipeFile, variant: str, where: str) -> Choice:
    choices = {"-".join(choice.values()): choice for choice in file.choices() if choice}
    if variant not in choices:
        raise UserError(f"no variant {variant!r}", where=where, given=variant, choices=choices)
    return choices[variant]


def _checked_variants(variants: Any, where: str) -> dict[str, dict[str, dict[str, Any] | None]]:
    for axis, named in variants.items() if isinstance(variants, dict) else [("variants", None)]:
        if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named):
            raise UserError(
                f"key 'variants': {axis!r} does not map names of variants to changes", where=where
            )
        for name, changes in named.items():
            if not isinstance(changes, dict | None):
                raise UserError(f"key 'variants.{axis}.{name}': not a mapping of changes", where=where)
    checked: dict[str, dict[str, dict[str, Any] | None]] = variants
    return checked
