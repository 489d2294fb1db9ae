"""The engine's own account of its work."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Counters:
    """What the engine did since it started, counted where it happened; usages of all requests add up to it.

    `computed` counts tokens that went through the model, `cached` prompt tokens that did not need to, `generated`
    sampled tokens. `resident` counts the tokens in the radix tree now, `in_use` the slots that running requests
    hold and that cannot be evicted.
    """

    computed: int = 0
    cached: int = 0
    generated: int = 0
    requests: int = 0
    forwards: int = 0
    evicted: int = 0
    resident: int = 0
    in_use: int = 0
