"""Recipes: one experiment as a YAML file, checked as a whole before anything runs."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pfa_convert.errors import UserError
from pfa_convert.recipe_files import Choice, find_recipe
from pfa_convert.recipe_text import with_settings

if TYPE_CHECKING:
    import torch


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSection(BaseModel):
    """`model:` the plain model; further keys go to its constructor."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

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

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    name: str = "sgd"
    lr: float = Field(default=0.1, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)

    @property
    def arguments(self) -> dict[str, Any]:
        """The optimizer's keyword arguments: the keys that were given, and the learning rate."""
        return {"lr": self.lr, **self.model_dump(exclude={"name"}, exclude_unset=True)}


class ScheduleSection(_Section):
    """A schedule of learning rate or weight decay, in epochs completed."""

    name: Literal["multistep", "cosine", "linear", "constant"] = "multistep"
    milestones: list[float] = []
    gamma: float = Field(default=0.1, ge=0)
    warmup_epochs: float = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _no_key_without_effect(self) -> ScheduleSection:
        defaults = {key: type(self).model_fields[key].default for key in ("milestones", "gamma")}
        useless = {key for key, default in defaults.items() if getattr(self, key) != default}
        if self.name != "multistep" and useless:
            raise ValueError(f"a {self.name} schedule has no {' and no '.join(sorted(useless))}")
        if self.milestones != sorted(self.milestones):
            raise ValueError("the milestones are not in ascending order")
        return self


class TrainSection(_Section):
    """`train:` the optimizer, its schedules, precision and seeds."""

    epochs: int = Field(default=10, ge=0)
    optimizer: OptimizerSection = OptimizerSection()
    lr_schedule: ScheduleSection = ScheduleSection(name="constant")
    weight_decay_schedule: ScheduleSection = ScheduleSection(name="constant")
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    seeds: list[int] = Field(default=[0], min_length=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    gradient_accumulation: int = Field(default=1, ge=1)
    clip_norm: float | None = Field(default=None, gt=0)
    channels_last: bool = False
    compile: bool = False
    deterministic: bool = False
    gradient_angles: bool = False
    phase_interval: int = Field(default=1, ge=1)
    ema: float | None = Field(default=None, gt=0, lt=1)


class ExpectSection(_Section):
    """`expect:` the published number to compare with, in percent."""

    metric: Literal["validation_top1", "test_top1"]
    mean: float
    std: float | None = None
    epochs: int | None = Field(default=None, ge=1)
    source: str = ""


class Recipe(_Section):
    """A whole experiment."""

    name: str = Field(pattern=r"^[\w][\w.+-]*$")
    experiment: str | None = Field(default=None, pattern=r"^[\w][\w.+-]*$")
    variant: str | None = None
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
        source: a path, `path:variant`, or the name of a packaged recipe.
        settings: changes such as `train.epochs=5`, the values written as in YAML.

    Raises:
        UserError: naming file, key, reason and the nearest valid choice.
    """
    file, choice = find_recipe(source)
    content = file.content(choice)
    _name(content, file.path.stem, choice)
    _note_length(content)
    return parse_recipe(with_settings(content, settings), str(source))


def _name(content: dict[str, Any], stem: str, choice: Choice) -> None:
    """Record what a recipe is called and which experiment it is a variant of: never guessed from its name."""
    name = content.setdefault("name", stem)
    if isinstance(name, str):
        content.setdefault("experiment", name)
    if choice and isinstance(name, str):
        content["variant"] = "-".join(choice.values())
        content["name"] = f"{name}-{content['variant']}"


def _note_length(content: dict[str, Any]) -> None:
    """Record the length of the runs that `expect` is about, before a setting changes it."""
    expect, train = content.get("expect"), content.get("train")
    if isinstance(expect, dict) and isinstance(train, dict) and "epochs" in train:
        expect.setdefault("epochs", train["epochs"])


def parse_recipe(content: Mapping[str, Any], where: str) -> Recipe:
    """Return the recipe with this content; raises UserError with `where` and the key otherwise."""
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise _explain(error, where) from None
    optimizer_class(recipe.train.optimizer, f"{where}: train.optimizer")
    return recipe


def optimizer_class(section: OptimizerSection, where: str) -> type[torch.optim.Optimizer]:
    """Return the class of torch.optim that a section names, whatever its capitals.

    Raises:
        UserError: for an unknown name, or an argument or value that the class does not take.
    """
    import torch

    unusable = (torch.optim.Optimizer, torch.optim.LBFGS, torch.optim.SparseAdam)
    classes = {
        name.lower(): value
        for name, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and value not in unusable
    }
    name = section.name.lower()
    if name not in classes:
        raise UserError(f"unknown optimizer {section.name!r}", where=where, given=name, choices=classes)
    chosen = classes[name]
    known = set(inspect.signature(chosen).parameters) - {"params"}
    for argument in section.arguments:
        if argument not in known:
            raise UserError(
                f"{chosen.__name__} takes no {argument!r}", where=where, given=argument, choices=known
            )
    try:
        chosen([torch.zeros(1, 1, requires_grad=True)], **section.arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{chosen.__name__}: {error}", where=where) from None
    return chosen


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
