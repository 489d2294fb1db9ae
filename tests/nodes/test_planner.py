"""Settings of the wrong kind are refused by every planning node when it is made, not when it runs."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.nodes.world import GrammarDialect, make_engine
from tests.scripts import make_verifier
from tts_agent import Beam, LabelVerifier
from tts_agent.errors import ConfigError
from tts_agent.nodes import (
    SharedBudget,
    create_planner,
    create_planning_agent,
    make_expand_node,
    make_plan_node,
    make_select_node,
    make_verify_node,
)


def tell(text: str) -> str:
    """Tell it."""
    return text


MAKERS: dict[str, Callable[..., Any]] = {
    "plan": make_plan_node,
    "expand": make_expand_node,
    "verify": make_verify_node,
    "select": make_select_node,
    "planner": create_planner,
    "agent": lambda engine, **settings: create_planning_agent(engine, tools=[tell], **settings),
    "staged agent": lambda engine, **settings: create_planning_agent(engine, tools=[tell], staged=True, **settings),
}


class Misplaced(LabelVerifier):
    """Of a scope that does not exist."""

    scope: Any = "branch"


WRONG = [
    ({"budget": 5}, r"budget 5 of scope 'step' is no Budget; pass Budget\(calls="),
    ({"budget": 0}, r"budget 0 of scope 'step' is no Budget; pass Budget\(calls="),
    ({"budget": {}}, r"budget \{\} of scope 'step' is no Budget"),
    ({"budget": {"calls": 5}}, r"budget \{'calls': 5\} of scope 'step' is no Budget; pass Budget\(calls="),
    ({"run_budget": 0}, r"budget 0 of scope 'run' is no Budget; pass Budget\(calls="),
    ({"run_budget": {"calls": 5}}, r"budget \{'calls': 5\} of scope 'run' is no Budget"),
    ({"prices": 3}, r"prices 3 of scope .* are no Prices; pass Prices\(prompt, generated\)"),
    ({"prices": {}}, r"prices \{\} of scope .* are no Prices"),
    ({"verifier": 5}, "verifier 5 is no Verifier: it has no name, scope, bound, __call__; CheckVerifier"),
    ({"verifier": tell}, "verifier <function tell .* is no Verifier: it has no name, scope, bound; CheckVerifier"),
    ({"verifier": LabelVerifier}, r"verifier LabelVerifier is a class; pass an instance, LabelVerifier\(\.\.\.\)"),
    ({"strategy": 5}, r"strategy 5 is neither a name \(beam, best_first, .*\) nor a Strategy: it has no name, unit"),
    ({"strategy": None}, "strategy None is neither a name"),
    ({"strategy": Beam}, r"strategy Beam is a class; pass an instance, Beam\(\.\.\.\)"),
    ({"seed": "x"}, "seed='x' must be a whole number"),
    ({"name": None}, "name=None must be a text"),
]


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(("settings", "reason"), WRONG)
def test_a_setting_of_the_wrong_kind_is_refused_at_once(maker: str, settings: dict[str, Any], reason: str) -> None:
    engine = make_engine()
    with pytest.raises(ConfigError, match=reason):
        MAKERS[maker](engine, dialect=GrammarDialect(engine), **({"strategy": Beam()} | settings))


def test_a_verifier_of_no_known_scope_is_refused() -> None:
    engine = make_engine()
    verifier = Misplaced(engine, question="?", good="y", bad="n")
    with pytest.raises(ConfigError, match=r"scope 'branch' of verifier 'labels' is none of \('thought', 'siblings'"):
        make_plan_node(engine, dialect=GrammarDialect(engine), strategy="beam", verifier=verifier)
    make_plan_node(engine, dialect=GrammarDialect(engine), strategy="beam", verifier=make_verifier(engine))


def test_a_shared_budget_is_made_of_a_budget() -> None:
    with pytest.raises(ConfigError, match="budget 5 of scope 'team' is no Budget"):
        SharedBudget(5, name="team")  # type: ignore[arg-type]
