"""Seeds made of whatever names a draw: the run's seed, a step, a rollout. One function, so that runs repeat."""

from __future__ import annotations

import hashlib


def seed_for(*parts: object) -> int:
    """A 63-bit seed from any values: stable over processes and machines, unlike `hash`."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
