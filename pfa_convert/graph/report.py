"""The report of a conversion: what happened to each site, and what was skipped and why."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from pfa_convert.graph.sites import OtherUse, Skipped


@dataclass(frozen=True)
class SiteReport:
    """One converted site: a rule was decided for it; shapes are `(N_out, N_in, *k)` as in PyTorch.

    `strategy` is the present one, which coupling may change; `frozen` says that the weight does not learn.
    """

    name: str
    kind: str
    weight: str
    owner: str
    weight_shape: tuple[int, ...]
    rule: str
    options: dict[str, Any]
    strategy: str
    reason: str
    feedback_elements: int
    frozen: bool = False

    @property
    def weight_elements(self) -> int:
        """The number of elements of the forward weight."""
        return math.prod(self.weight_shape)


@dataclass(frozen=True)
class ConversionReport:
    """What `convert` did: `sites` in the order of execution, and `skipped` with a reason each.

    `others` are the remaining Parameters of two or more dimensions, with what they are used for.
    """

    sites: tuple[SiteReport, ...]
    skipped: tuple[Skipped, ...] = ()
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    others: tuple[OtherUse, ...] = ()

    @property
    def feedback_elements(self) -> int:
        """The number of feedback state elements added; a weight used twice counts once."""
        return sum({site.weight: site.feedback_elements for site in self.sites}.values())

    def counts(self) -> dict[str, int]:
        """Return the number of sites by rule."""
        return dict(Counter(site.rule for site in self.sites))

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data for JSON."""
        return {
            "sites": [asdict(site) for site in self.sites],
            "skipped": [asdict(one) for one in self.skipped],
            "others": [asdict(other) for other in self.others],
            "counts": self.counts(),
            "feedback_elements": self.feedback_elements,
            "seed": self.seed,
        }

    def __str__(self) -> str:
        """Return one line for each site, then one for each skipped weight."""
        lines = [
            f"{site.name:<40} {site.kind:<16} {'x'.join(map(str, site.weight_shape)):<18} {site.rule}"
            + (" (frozen)" if site.frozen else "")
            for site in self.sites
        ]
        lines += [f"{one.name:<40} {one.kind:<16} skipped: {one.reason}" for one in self.skipped]
        rules = ", ".join(f"{count} {rule}" for rule, count in self.counts().items()) or "none"
        lines.append(
            f"{len(self.sites)} sites ({rules}), {len(self.skipped)} skipped, "
            f"{self.feedback_elements:,} feedback elements"
        )
        return "\n".join(lines)
