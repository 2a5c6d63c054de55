"""Every mistake of a recipe at once: its keys and values, and the names that they must be among."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from pydantic import BaseModel, ValidationError

from pfa_convert.data import DATASETS
from pfa_convert.data.options import option_model
from pfa_convert.errors import UserError
from pfa_convert.models import resolve
from pfa_convert.recipe import ConvertSection, DataSection, ModelSection, OptimizerSection, Recipe
from pfa_convert.rules import RULES, make_rule


def mistakes(content: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each mistake, with its key and the nearest valid choice; none for a recipe."""
    found: list[str] = []
    try:
        Recipe.model_validate(content)
    except ValidationError as error:
        found += complaints(error, Recipe)
    for path, section, check in _CHECKS:
        part: Any = content
        for key in path:
            part = part.get(key, {}) if isinstance(part, Mapping) else None
        try:
            checked = section.model_validate(part)
        except ValidationError:
            continue  # its mistakes are found already
        found += check(checked)
    return found


def complaints(error: ValidationError, schema: type[BaseModel], above: str = "") -> list[str]:
    """Return pydantic's complaints as sentences; misspelt keys before all others."""
    ordered = sorted(error.errors(), key=lambda complaint: complaint["type"] != "extra_forbidden")
    return [_sentence(complaint, schema, above) for complaint in ordered]


def _sentence(complaint: Any, schema: type[BaseModel], above: str) -> str:
    key = above + ".".join(map(str, complaint["loc"]))
    if complaint["type"] == "extra_forbidden":
        choices = _keys_at(schema, complaint["loc"][:-1])
        return str(UserError(f"unknown key {key!r}", given=str(complaint["loc"][-1]), choices=choices))
    if complaint["type"] == "missing":
        return f"the key {key!r} is missing"
    return f"key {key!r}: {complaint['msg']}, given {str(complaint['input'])[:60]!r}"


def _keys_at(schema: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Return the valid keys of the section at a location of the schema."""
    section: Any = schema
    for name in location:
        annotation = section.model_fields[str(name)].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        section = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(section.model_fields)


def _check_model(section: ModelSection) -> Iterator[str]:
    yield from _said("model.name", lambda: resolve(section.name))


def _check_conversion(section: ConvertSection) -> Iterator[str]:
    yield from _check_rule("convert", section.rule, section.options)
    for index, override in enumerate(section.overrides):
        rule, options = override.get("rule") or section.rule, override.get("options") or {}
        if isinstance(rule, str) and isinstance(options, Mapping):
            yield from _check_rule(f"convert.overrides[{index}]", rule, options)


def _check_rule(above: str, name: str, options: Mapping[str, Any]) -> Iterator[str]:
    if failed := list(_said(f"{above}.rule", lambda: RULES[name])):
        yield from failed
        return
    try:
        make_rule(name, options, where=f"{above}.options")
    except UserError as error:
        yield str(error)


def _check_data(section: DataSection) -> Iterator[str]:
    if failed := list(_said("data.dataset", lambda: DATASETS[section.dataset])):
        yield from failed
        return
    schema = option_model(section.dataset)
    try:
        schema.model_validate(section.options)
    except ValidationError as error:
        yield from complaints(error, schema, "data.options.")


def _check_optimizer(section: OptimizerSection) -> Iterator[str]:
    yield from _said("train.optimizer", lambda: optimizer_of(section))


def _said(where: str, look_up: Callable[[], object]) -> Iterator[str]:
    """Yield what a look-up says if it fails, with the key in front."""
    try:
        look_up()
    except UserError as error:
        yield f"{where}: {error}"


_CHECKS: tuple[tuple[tuple[str, ...], type[BaseModel], Callable[[Any], Iterator[str]]], ...] = (
    (("model",), ModelSection, _check_model),
    (("convert",), ConvertSection, _check_conversion),
    (("data",), DataSection, _check_data),
    (("train", "optimizer"), OptimizerSection, _check_optimizer),
)


def optimizers() -> dict[str, type[torch.optim.Optimizer]]:
    """Return the classes of torch.optim that a recipe can name, by their names in small letters."""
    unusable = (torch.optim.Optimizer, torch.optim.LBFGS, torch.optim.SparseAdam)
    return {
        name.lower(): value
        for name, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and value not in unusable
    }


def optimizer_of(section: OptimizerSection) -> Callable[..., torch.optim.Optimizer]:
    """Return what makes the optimizer of a section, whatever the capitals of its name, from parameters.

    Raises:
        UserError: for an unknown name, or an argument or value that the class does not take.
    """
    classes, name = optimizers(), section.name.lower()
    if name not in classes:
        raise UserError(f"unknown optimizer {section.name!r}", given=name, choices=classes)
    chosen = classes[name]
    taken, given = _arguments(chosen), section.arguments
    if not section.weight_decay and "weight_decay" not in taken:
        del given["weight_decay"]  # Rprop has none, and a recipe that says so is right
    for argument, value in given.items():
        if argument not in taken:
            raise UserError(f"{chosen.__name__} takes no {argument!r}", given=argument, choices=taken)
        if isinstance(taken[argument].default, bool) and not isinstance(value, bool):
            raise UserError(f"{chosen.__name__}: {argument} is true or false, given {value!r}")
    made: Callable[..., torch.optim.Optimizer] = partial(chosen, **given)
    try:
        made([torch.zeros(1, 1, requires_grad=True)])
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        raise UserError(f"{chosen.__name__}: {error}") from None
    return made


def _arguments(chosen: type[torch.optim.Optimizer]) -> dict[str, inspect.Parameter]:
    return {name: p for name, p in inspect.signature(chosen).parameters.items() if name != "params"}


def without_foreign_arguments(
    content: Mapping[str, Any], settings: Iterable[str]
) -> tuple[dict[str, Any], str | None]:
    """Leave out what a file says for its optimizer and the one that a setting names does not take.

    Returns:
        The content, and a line that tells what was left out and what was kept; None if all was kept.
    """
    train = content.get("train")
    section = train.get("optimizer") if isinstance(train, Mapping) else None
    if not isinstance(section, Mapping) or str(section.get("name")).lower() not in optimizers():
        return dict(content), None
    chosen = optimizers()[str(section["name"]).lower()]
    given = {setting.partition("=")[0].rpartition(".")[2] for setting in settings}
    taken = {*_arguments(chosen), *given, "name"}
    kept = {key: value for key, value in section.items() if key in taken}
    changed = {**content, "train": {**content["train"], "optimizer": kept}}
    if not (foreign := section.keys() - kept.keys()):
        return changed, None
    stay = ", ".join(f"{key} {value}" for key, value in kept.items() if key not in given)
    line = f"{chosen.__name__} takes no {' and no '.join(sorted(foreign))} of the recipe's: left out"
    return changed, f"train.optimizer: {line}" + (f"; kept: {stay}" if stay else "")
