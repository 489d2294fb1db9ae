"""`search()` refuses settings of the wrong kind before anything is sampled."""

from typing import Any

import pytest

from tests.scripts import make_engine, make_task, make_verifier
from tts_agent import Beam, Budget, search
from tts_agent.errors import ConfigError
from tts_agent.search import make_strategy


class Loose:
    """A strategy, but for its settings: it is no dataclass."""

    name, unit, bounded = "loose", "thought", True
    start = update = propose = choose = lambda *_: None


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"budget": 5}, r"budget 5 of scope 'search' is no Budget; pass Budget\(calls="),
    ({"budget": 0}, r"budget 0 of scope 'search' is no Budget; pass Budget\(calls="),
    ({"budget": {"calls": 5}}, r"budget \{'calls': 5\} of scope 'search' is no Budget"),
    ({"prices": 3}, r"prices 3 of scope 'search' are no Prices; pass Prices\(prompt, generated\)"),
    ({"ledger": Budget(calls=5)}, r"ledger Budget\(calls=5, .*\) around scope 'search' is no Ledger; pass Ledger\("),
    ({"verifier": 5}, "verifier 5 is no Verifier: it has no name, scope, bound, __call__; CheckVerifier"),
    ({"verifier": len}, "verifier <built-in function len> is no Verifier: it has no name, scope, bound; CheckVerifier"),
    (
        {"strategy": 5},
        r"strategy 5 is neither a name \(beam, .*\) nor a Strategy: it has no name, unit, bounded, start",
    ),
    ({"strategy": Loose()}, "strategy .* nor a Strategy: its settings are to be the fields of a dataclass"),
    ({"seed": 1.5}, "seed=1.5 must be a whole number"),
]


@pytest.mark.parametrize(("settings", "reason"), WRONG)
async def test_a_setting_of_the_wrong_kind_is_refused(settings: dict[str, Any], reason: str) -> None:
    engine = make_engine()
    chosen: dict[str, Any] = {"strategy": Beam(k=2, keep=1), "verifier": make_verifier(engine)}
    with pytest.raises(ConfigError, match=reason):
        await search(engine, make_task(engine), **(chosen | settings))
    assert not engine.requests


def test_a_finished_strategy_stays_as_it_is() -> None:
    strategy = Beam(k=2)
    assert make_strategy(strategy) is strategy
