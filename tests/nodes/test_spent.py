"""What the state knows of a shared budget: counters that merge in any order and count once."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tts_agent.errors import LogError
from tts_agent.nodes.spent import VERSION, Counter, merge_budgets, read_entry
from tts_agent.usage import Usage


def entry(run: str, begun: float, counters: dict[str, int], soft: tuple[str, ...] = ()) -> dict[str, Any]:
    made = {name: {"usage": {"calls": calls} if calls else {}, "lost": {}} for name, calls in counters.items()}
    return {
        "version": VERSION,
        "run": run,
        "begun": begun,
        "budget": {},
        "limit": None,
        "soft": list(soft),
        "counters": made,
        **Counter.total(made.values()).to_json(),
    }


entries = st.builds(
    lambda run, counters: {"b": entry(run, {"old": 1.0, "new": 2.0}[run], counters)},
    st.sampled_from(["old", "new"]),
    st.dictionaries(st.sampled_from("pqr"), st.integers(0, 9), min_size=1),
)


@given(entries, entries, entries)
def test_merging_knows_no_order_and_repeating_changes_nothing(a: Any, b: Any, c: Any) -> None:
    one = merge_budgets(merge_budgets(merge_budgets({}, a), b), c)
    other = merge_budgets(merge_budgets(merge_budgets({}, c), a), b)
    assert one == other == merge_budgets(one, one) == merge_budgets(one, a)
    newest = [each["b"] for each in (a, b, c) if each["b"]["run"] == one["b"]["run"]]
    counted = {
        name: max(e["counters"][name]["usage"].get("calls", 0) for e in newest if name in e["counters"])
        for e in newest
        for name in e["counters"]
    }
    assert one["b"]["usage"].get("calls", 0) == sum(counted.values())


def test_reasons_gather_and_other_budgets_stay() -> None:
    left = merge_budgets({}, {"a": entry("r", 1, {"p": 1}, ("x",)), "z": entry("s", 1, {"p": 4})})
    both = merge_budgets(left, {"a": entry("r", 1, {"q": 2}, ("y",))})
    assert both["a"]["soft"] == ["x", "y"] and both["a"]["usage"] == {"calls": 3} and both["z"]["usage"] == {"calls": 4}


@pytest.mark.parametrize("counter", [{}, {"usage": {"steps": 1}, "lost": {}}, {"usage": {}, "lost": {"x": 1}}, 3])
def test_a_damaged_counter_is_refused(counter: Any) -> None:
    with pytest.raises(LogError, match="damaged"):
        Counter.total([counter])


def test_state_of_any_shape_is_read() -> None:
    class State:
        tts_budgets = {"b": entry("r", 1, {})}

    assert read_entry(State(), "b") == read_entry({"tts_budgets": State.tts_budgets}, "b")
    assert read_entry(State(), "other") is None and read_entry({}, "b") is None
    assert Counter(Usage(calls=3)).less(Counter(Usage(calls=5))) == Counter()
