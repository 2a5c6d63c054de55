"""Recipes: one experiment as a YAML file, checked as a whole before anything runs."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pfa_convert.errors import UserError
from pfa_convert.recipe_files import Choice, RecipeFile, find_recipe
from pfa_convert.recipe_text import with_settings

Seed = Annotated[int, Field(ge=0, lt=2**63)]
NAME = r"^[\w][\w.+-]*$"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class ModelSection(BaseModel):
    """`model:` the plain model; further keys go to its constructor."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, strict=True)

    name: str = Field(description="resnet18, timm/resnet50, paper/mlp, package.module:factory")
    num_classes: int | None = Field(default=None, ge=1, description="outputs; the model's own by default")

    @property
    def options(self) -> dict[str, Any]:
        """The further keys; null leaves out one that a recipe has inherited."""
        return {key: value for key, value in (self.model_extra or {}).items() if value is not None}


class ConvertSection(_Section):
    """`convert:` which rule each site gets, as the arguments of `convert`."""

    rule: str = Field(
        default="pfa", description="of every site that no override names; or package.module:Rule"
    )
    options: dict[str, Any] = Field(default={}, description="options of the rule, such as {expansion: 10}")
    overrides: list[dict[str, Any]] = Field(
        default=[], description="for some sites; the first match wins; or {PATTERN: RULE}"
    )
    seed: int | None = Field(default=None, description="of feedback weights; the run's by default")
    unroll: bool = Field(
        default=False, description="run nn.LSTM, nn.GRU and nn.RNN step by step, so that they are sites"
    )
    strict: bool = Field(
        default=False, description="refuse a model in which a learned weight would get no rule"
    )

    @field_validator("overrides", mode="before")
    @classmethod
    def _from_mapping(cls, value: Any) -> Any:
        """Accept `{fc: bp}`, the pattern with its rule, as everybody writes it first."""
        from pfa_convert.graph.overrides import listed

        return listed(value) if isinstance(value, Mapping) else value


class DataSection(_Section):
    """`data:` the data set, its folder, and how many training images are held out for validation."""

    dataset: str = Field(default="digits", description="the name of a data set")
    root: str = Field(default="data", description="the folder with the files; `--data` goes before it")
    batch_size: int = Field(default=64, ge=1, description="images in a step, of all processes together")
    validation: int = Field(
        default=0, ge=0, description="training images that are held out to judge the model by"
    )
    workers: int = Field(default=2, ge=0, description="processes that decode image files")
    options: dict[str, Any] = Field(default={}, description="options of the data set")


class OptimizerSection(BaseModel):
    """`optimizer:` any class of torch.optim by name; further keys are its arguments."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, strict=True)

    name: str = Field(default="sgd", description="a class of torch.optim, in any capitals")
    lr: float = Field(default=0.1, ge=0, description="the first learning rate")
    weight_decay: float = Field(default=0.0, ge=0, description="the first weight decay")

    @property
    def arguments(self) -> dict[str, Any]:
        """The optimizer's keyword arguments: all keys but its name."""
        return self.model_dump(exclude={"name"})


class ScheduleSection(_Section):
    """A schedule of learning rate or weight decay, in epochs completed."""

    name: Literal["multistep", "cosine", "linear", "constant"] = Field(
        default="multistep", description="its shape"
    )
    milestones: list[float] = Field(
        default=[], description="epochs after which the value is multiplied by gamma"
    )
    gamma: float = Field(default=0.1, ge=0, description="what a multistep schedule multiplies by")
    warmup_epochs: float = Field(
        default=0, ge=0, description="epochs in which the value rises linearly at first"
    )

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

    epochs: int = Field(default=10, ge=0, le=100_000, description="passes over the training images")
    optimizer: OptimizerSection = OptimizerSection()
    lr_schedule: ScheduleSection = ScheduleSection(name="constant")
    weight_decay_schedule: ScheduleSection = ScheduleSection(name="constant")
    forgetting: float | None = Field(
        default=None,
        ge=1,
        description="steps in which plastic feedback weights forget their start, beside what decay forgets",
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description="of the forward and backward pass"
    )
    seeds: list[Seed] = Field(
        default=[0], min_length=1, description="of `reproduce`; `train` takes the first"
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of the target that all classes get"
    )
    gradient_accumulation: int = Field(default=1, ge=1, description="batches in a step of the optimizer")
    clip_norm: float | None = Field(default=None, gt=0, description="largest norm of all gradients together")
    channels_last: bool = Field(default=False, description="the memory format of images and convolutions")
    compile: bool = Field(default=False, description="compile the model as one graph")
    cuda_graph: bool = Field(
        default=False,
        description="where one process has a GPU, record the step as a CUDA graph: for small networks",
    )
    deterministic: bool = Field(
        default=False, description="only algorithms that give the same bits in every run"
    )
    gradient_angles: bool = Field(default=False, description="log the angles to backpropagation's gradients")
    phase_interval: int = Field(default=1, ge=1, description="steps between two phases of wm, ia and sa")
    ema: float | None = Field(
        default=None, gt=0, lt=1, description="decay of weight averages, which are judged"
    )


class ExpectSection(_Section):
    """`expect:` the published number to compare with, in percent."""

    metric: Literal["validation_top1", "test_top1"] = Field(description="what was measured")
    mean: float = Field(description="over the published runs")
    std: float | None = Field(default=None, description="over the published runs")
    epochs: int | None = Field(
        default=None, ge=1, description="of the published runs; the recipe's by default"
    )
    source: str = Field(default="", description="where it is published")


class Recipe(_Section):
    """A whole experiment."""

    name: str = Field(pattern=NAME, description="of the run's folder; the file's name by default")
    experiment: str | None = Field(
        None,
        pattern=NAME,
        description="the table that it belongs to; the file's name by default",
    )
    variant: str | None = Field(default=None, description="its name in that table")
    model: ModelSection
    convert: ConvertSection = ConvertSection()
    init: Literal["xavier_uniform"] | None = Field(
        default=None, description="of weights; the model's own by default"
    )
    data: DataSection = DataSection()
    train: TrainSection = TrainSection()
    expect: ExpectSection | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain data, ready for YAML."""
        return self.model_dump(exclude_none=True)


def load_recipe(
    source: str | Path, settings: Iterable[str] = (), note: Callable[[str], object] = warnings.warn
) -> Recipe:
    """Return the recipe in a file, or the packaged one of that name.

    Args:
        source: a path, `path:variant`, or the name of a packaged recipe.
        settings: changes such as `train.epochs=5`, the values written as in YAML. With another
            `train.optimizer.name`, arguments of the file's optimizer that the new one does not take are
            left out, and `note` is told which.
        note: told, in one line, what was left out; a warning by default.

    Raises:
        UserError: naming file, and every mistake with its key, reason and the nearest valid choice.

    Examples:
        >>> recipe = load_recipe("digits-mlp-pfa", ["train.epochs=3"])
        >>> recipe.convert.rule, recipe.train.epochs
        ('pfa', 3)
    """
    settings = list(settings)
    file, choice = find_recipe(source)
    content = file.content(choice)
    _name(content, file, choice)
    _note_length(content)
    changed = with_settings(content, settings)
    _rename(changed, content, file, choice)
    if any(setting.startswith("train.optimizer.name=") for setting in settings):
        from pfa_convert.recipe_check import without_foreign_arguments

        changed, left_out = without_foreign_arguments(changed, settings)
        if left_out is not None:
            note(left_out)
    return parse_recipe(changed, str(source))


def parse_recipe(content: Mapping[str, Any], where: str) -> Recipe:
    """Return the recipe with this content; raises UserError with `where` and all mistakes otherwise."""
    from pfa_convert.recipe_check import mistakes

    found = mistakes(content)
    if len(found) > 1:
        raise UserError(f"{len(found)} mistakes: {' | '.join(found)}", where=where)
    if found:
        raise UserError(found[0], where=where)
    return Recipe.model_validate(content)


def _name(content: dict[str, Any], file: RecipeFile, choice: Choice) -> None:
    """Record what a recipe is called and which experiment it is a variant of: never guessed from its name.

    A file without a name has its own as a file, not that of what it extends: their runs are apart.
    """
    name = content["name"] = file.own.get("name", _as_name(file.path.stem))
    if isinstance(name, str):
        content.setdefault("experiment", name)
    if choice and isinstance(name, str):
        content["variant"] = "-".join(choice.values())
        content["name"] = f"{name}-{content['variant']}"


def _rename(changed: dict[str, Any], content: Mapping[str, Any], file: RecipeFile, choice: Choice) -> None:
    """Record a variant that a setting gave another rule as that rule's, without the first one's numbers."""
    before, after = (c["convert"] if isinstance(c.get("convert"), dict) else {} for c in (content, changed))
    rule = after.get("rule")
    if choice and isinstance(rule, str) and before.get("rule") != rule and changed["name"] == content["name"]:
        _name(changed, file, {**choice, "rule": _as_name(rule)})
        changed.pop("expect", None)


def _as_name(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text).lstrip(".+-")


def _note_length(content: dict[str, Any]) -> None:
    """Record the length of the runs that `expect` is about, before a setting changes it."""
    expect, train = content.get("expect"), content.get("train")
    if isinstance(expect, dict) and isinstance(train, dict) and train.get("epochs"):
        expect.setdefault("epochs", train["epochs"])
