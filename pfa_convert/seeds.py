"""The project's one way to derive a seed from another: stable over versions of Python and machines."""

from __future__ import annotations

import hashlib


def derived_seed(seed: int, purpose: str) -> int:
    """Return a seed of its own for each purpose: a number below `2**63` from the SHA-256 of both.

    A weight's draw, or an epoch's order of images, so does not depend on what else is drawn.

    >>> derived_seed(0, "fc.weight") == derived_seed(0, "fc.weight") != derived_seed(1, "fc.weight")
    True
    """
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
