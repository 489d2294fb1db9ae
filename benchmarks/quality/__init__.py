"""How good decisions are at equal compute: every search beside its baselines, by `benchmarks/protocol.md`."""
