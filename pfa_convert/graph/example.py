"""What one run of a model applies: for the weights behind control flow that no walk can follow.

The run is made on a throw-away copy, in training and in evaluation mode, without the feedback of anything.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

import torch
from torch import nn

from pfa_convert.errors import UserError, one_line
from pfa_convert.feedback.calls import tensors_of
from pfa_convert.feedback.follow import FollowWeights
from pfa_convert.feedback.functions import axes_after, plain_name, those_that_count
from pfa_convert.feedback.layout import ProductLayout, WeightLayout
from pfa_convert.feedback.learned import Learned, Operand
from pfa_convert.feedback.products import Product, is_scale, operand_layout, product_of
from pfa_convert.graph.layers import own_layer
from pfa_convert.graph.sites import Discovery, Site, site_name
from pfa_convert.graph.uses import ASSEMBLED, FUSED, UNSUPPORTED, use_name

Example = tuple[Sequence[Any], Mapping[str, Any]]


def discover_by_example(
    model: nn.Module, example: Example | Sequence[Mapping[str, Any]], found: Discovery
) -> list[Site]:
    """Add to what a walk found the sites of an example's run, or those an earlier one showed; return them.

    Raises:
        UserError: if the example is none, or the model does not take its arguments.
    """
    if all(isinstance(entry, Mapping) and "weight" in entry for entry in example):
        sites = [from_plain(entry) for entry in cast(Sequence[Mapping[str, Any]], example)]
        _add_sites(found, sites)
        return sites
    if not isinstance(example, tuple) or len(example) != 2 or not isinstance(example[1], Mapping):
        raise UserError("example: not a pair (args, kwargs) of a call of the model")
    return _run_example(model, *cast(Example, example), found)


def _run_example(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], found: Discovery
) -> list[Site]:
    run_of = copy.deepcopy(model)
    recorder = _Recorder(run_of)
    for module in run_of.modules():
        module.register_forward_pre_hook(recorder.enter)
        module.register_forward_hook(recorder.leave, always_call=True)
    for training in (True, False):
        run_of.train(training)
        try:
            with torch.enable_grad(), recorder:
                run_of(*copy.deepcopy(args), **copy.deepcopy(dict(kwargs)))
        except Exception as error:
            text = one_line(error, 160)
            kind = type(error).__name__
            raise UserError(f"example: the model does not run with it: {kind}: {text}") from error
    sites = list(dict.fromkeys(recorder.sites))
    _add_sites(found, sites)
    for name, use in recorder.used.items():
        if name in found.applied() or use in FUSED:
            continue
        found.skipped.pop(name, None)
        if use in UNSUPPORTED:
            holder, _, _ = name.rpartition(".")
            shape = tuple(model.get_parameter(name).shape)
            found.skip(name, model.get_submodule(holder), shape, UNSUPPORTED[use])
        else:
            found.used[name] = use
    return sites


def _add_sites(found: Discovery, sites: Iterable[Site]) -> None:
    """Add sites that a run has shown."""
    for site in sites:
        found.add(site)
        found.owners[site.owner].add(site.weight.removeprefix(f"{site.owner}."))
        found.skipped.pop(site.weight, None)
        found.used.pop(site.weight, None)


def to_plain(site: Site) -> dict[str, Any]:
    """Return a site as plain data, for a recipe's or a file's header."""
    kind = type(site.layout).__name__
    return {**asdict(site), "layout": {"kind": kind, **asdict(site.layout)}}


def from_plain(data: Mapping[str, Any]) -> Site:
    """Undo `to_plain`."""
    fields = dict(data["layout"])
    layout = {"ProductLayout": ProductLayout, "WeightLayout": WeightLayout}[fields.pop("kind")]
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return Site(**{**data, "layout": layout(**fields)})


class _Recorder(FollowWeights):
    """Sees all calls of a run, and which module's code makes them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__((), list(model.buffers()))
        self.sites: list[Site] = []
        self.used: dict[str, str] = {}
        self._model = model
        self._names = {module: name for name, module in model.named_modules()}
        self._running: list[nn.Module] = [model]
        for name, parameter in model.named_parameters():
            self.remember(Learned(parameter, (name,), tuple(range(parameter.dim()))))

    def __deepcopy__(self, memo: Any) -> _Recorder:
        """Return itself: a forward that copies one of its modules copies the hooks, which are this one's."""
        return self

    def enter(self, module: nn.Module, args: Any) -> None:
        """Be told that a module's forward begins."""
        self._running.append(module)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """Be told that it has ended."""
        self._running.pop()

    def settle(self) -> None:
        """Compute nothing: in this run nothing has feedback."""

    def change(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the weights that a tensor is changed by, unless it is one itself."""
        if self.find(args[0]) is not None:
            return
        constant = self.is_constant(args[0])
        self.forget_constant(args[0])
        learned = [one for one in map(self.find, tensors_of(args, kwargs)) if one is not None]
        for source in [source for one in learned for source in one.sources] if constant else ():
            self.used.setdefault(source, ASSEMBLED)
        self.used_otherwise(func, args, kwargs, learned)

    def describe(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], learned: list[Learned], made: Learned
    ) -> None:
        """Note the Parameters that a tensor comes from, and where their dimensions are."""
        sizes = [(one.tensor.dim(), one.tensor.numel()) for one in learned]
        weights = [learned[index] for index in those_that_count(func, sizes)]
        made.sources = tuple(dict.fromkeys(source for one in weights for source in one.sources))
        if not made.mixed and product_of(func) is None:
            name, dimensions = plain_name(func), made.tensor.dim()
            made.axes = axes_after(name, args[1:], kwargs, weights[0].axes, dimensions)

    def applied(
        self,
        function: Any,
        product: Product,
        weights: list[Operand],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Note the weights that a product applies, unless a layer of PyTorch's does it with its own."""
        module = self._running[-1]
        owner = self._names.get(module, "")  # a forward's own copy of a module has no name
        for index, learned in weights if own_layer(module) is None else ():
            axes = learned.axes if len(learned.sources) == 1 else None
            for source in learned.sources:
                if is_scale(product, index, args):
                    self.used.setdefault(source, "scale")
                    continue
                shape = tuple(self._model.get_parameter(source).shape)
                layout = operand_layout(product, index, shape, args, kwargs, axes)
                inside = owner if source.startswith(f"{owner}.") else ""
                self.sites.append(Site(site_name(source), f"{product.name}()", source, inside, layout))
        return function(*args, **kwargs)

    def used_otherwise(
        self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], learned: Sequence[Learned]
    ) -> None:
        """Note what else is done with Parameters."""
        for one in learned:
            for source in one.sources:
                self.used.setdefault(source, use_name(function, args, kwargs, one.tensor))
