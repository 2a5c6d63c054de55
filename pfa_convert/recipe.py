"""Recipes: one experiment as a YAML file, checked as a whole before anything runs."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pfa_convert.errors import UserError

LARGEST_FILE = 1_000_000
"""Bytes; a longer file is no recipe."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(BaseModel):
    """`model:` the plain model; further keys go to its constructor."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    num_classes: int | None = Field(default=None, ge=1)


class ConvertSection(_Section):
    """`convert:` which rule each site gets, as the arguments of `convert`."""

    rule: str = "pfa"
    options: dict[str, Any] = {}
    overrides: list[dict[str, Any]] = []
    seed: int | None = None


class DataSection(_Section):
    """`data:` the data set, its folder, and how many training images are held out for validation."""

    dataset: str = "digits"
    root: str = "data"
    batch_size: int = Field(default=64, ge=1)
    validation: int = Field(default=0, ge=0)
    workers: int = Field(default=2, ge=0)
    options: dict[str, Any] = {}


class OptimizerSection(BaseModel):
    """`optimizer:` any class of torch.optim by name; further keys are its arguments."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = "sgd"
    lr: float = Field(default=0.1, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)


class ScheduleSection(_Section):
    """A schedule of learning rate or weight decay, in epochs completed."""

    name: Literal["multistep", "cosine", "constant"] = "multistep"
    milestones: list[float] = []
    gamma: float = 0.1
    warmup_epochs: float = Field(default=0, ge=0)


class TrainSection(_Section):
    """`train:` the optimizer, its schedules, precision and seeds."""

    epochs: int = Field(default=10, ge=0)
    optimizer: OptimizerSection = OptimizerSection()
    lr_schedule: ScheduleSection = ScheduleSection(name="constant")
    weight_decay_schedule: ScheduleSection = ScheduleSection(name="constant")
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    seeds: list[int] = [0]
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    gradient_accumulation: int = Field(default=1, ge=1)
    clip_norm: float | None = Field(default=None, gt=0)
    channels_last: bool = False
    compile: bool = False
    deterministic: bool = False


class ExpectSection(_Section):
    """`expect:` the published number to compare with, in percent."""

    metric: str
    mean: float
    std: float | None = None
    source: str = ""


class Recipe(_Section):
    """A whole experiment."""

    name: str
    model: ModelSection
    convert: ConvertSection = ConvertSection()
    init: Literal["xavier_uniform"] | None = None
    data: DataSection = DataSection()
    train: TrainSection = TrainSection()
    expect: ExpectSection | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain data, ready for YAML."""
        return self.model_dump(exclude_none=True)


def load_recipe(source: str | Path, settings: Iterable[str] = ()) -> Recipe:
    """Return the recipe in a file, or the packaged one of that name.

    Args:
        source: a path, or a name that `packaged_recipes` lists.
        settings: changes such as `train.epochs=5`, the values written as in YAML.

    Raises:
        UserError: naming file, key, reason and the nearest valid choice.
    """
    path = find_recipe(source)
    content = _resolve_extends(path, ())
    content.setdefault("name", path.stem)
    for setting in settings:
        _apply_setting(content, setting)
    return parse_recipe(content, str(source))


def parse_recipe(content: Mapping[str, Any], where: str) -> Recipe:
    """Return the recipe with this content; raises UserError with `where` and the key otherwise."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise _explain(error, where) from None


def packaged_recipes() -> dict[str, Path]:
    """Return the recipes that come with the package, by name."""
    here = Path(__file__).resolve().parent
    folder = next((f for f in (here / "recipes", here.parent / "recipes") if f.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))} if folder else {}


def find_recipe(source: str | Path) -> Path:
    """Return the file of a recipe given by path or packaged name."""
    path = Path(source)
    if path.is_file():
        return path
    packaged = packaged_recipes()
    if str(source) in packaged:
        return packaged[str(source)]
    if path.is_dir():
        raise UserError("is a folder, not a recipe", where=str(source))
    raise UserError(f"unknown recipe {str(source)!r}", given=str(source), choices=packaged)


def _resolve_extends(path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    """Return the file's content laid over that of the recipe it extends."""
    if path.resolve() in children:
        raise UserError("extends itself", where=str(path))
    content = _read(path)
    base = content.pop("extends", None)
    if base is None:
        return content
    beside = path.parent / f"{base}.yaml"
    base_path = beside if beside.is_file() else find_recipe(base)
    return _merge(_resolve_extends(base_path, (*children, path.resolve())), content)


def _read(path: Path) -> dict[str, Any]:
    where = str(path)
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"is too large for a recipe: more than {LARGEST_FILE:,} bytes", where=where)
        text = path.read_text(encoding="utf-8")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise UserError("aliases (*name) are not allowed in a recipe", where=where)
        content = yaml.safe_load(text)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=where) from None
    except UnicodeDecodeError:
        raise UserError("is not UTF-8 text", where=where) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"is not valid YAML: {error or 'nested too deeply'}", where=where) from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError("is not a mapping of names to values", where=where)
    return content


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(dict(base))
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _apply_setting(content: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"{setting!r} is not of the form key=value", where="--set")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"the value {text!r} is not valid YAML", where=f"--set {key}") from None
    *path, last = key.split(".")
    section = content
    for name in path:
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            raise UserError(f"{name!r} is not a section", where=f"--set {setting}")
    section[last] = value


def _explain(error: ValidationError, where: str) -> UserError:
    """Turn the first of pydantic's complaints into one line; misspelt keys before all others."""
    complaints = sorted(error.errors(), key=lambda complaint: complaint["type"] != "extra_forbidden")
    first = complaints[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return UserError(
            f"unknown key {key!r}",
            where=where,
            given=str(first["loc"][-1]),
            choices=_keys_at(first["loc"][:-1]),
        )
    if first["type"] == "missing":
        return UserError(f"the key {key!r} is missing", where=where)
    return UserError(f"key {key!r}: {first['msg']}, given {str(first['input'])[:60]!r}", where=where)


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    """Return the valid keys of the section at a location of the schema."""
    section: Any = Recipe
    for name in location:
        annotation = section.model_fields[str(name)].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        section = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(section.model_fields)
