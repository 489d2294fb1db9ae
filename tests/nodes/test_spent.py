"""What the state knows of a shared budget: counters that merge in any order and count once."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

from tts_agent.budget import Budget, Ledger
from tts_agent.errors import LogError
from tts_agent.nodes import account as account_module
from tts_agent.nodes.account import Account, JointLedger, RunLedger
from tts_agent.nodes.spent import NOBODY, VERSION, Counter, merge_budgets, newest_turn, read_entry
from tts_agent.usage import Prices, Usage


def entry(run: str, begun: float, counters: dict[str, int], soft: tuple[str, ...] = ()) -> dict[str, Any]:
    made = {name: {"usage": {"calls": calls} if calls else {}, "lost": {}} for name, calls in counters.items()}
    return {
        "version": VERSION,
        "run": run,
        "begun": begun,
        "budget": {},
        "limit": None,
        "soft": list(soft),
        "turns": {},
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


def test_the_messages_of_a_run_gather_and_the_newest_of_a_place_stands() -> None:
    left, right = entry("r", 1, {"p": 1}), entry("r", 1, {"p": 2})
    left["turns"], right["turns"] = {"": "m1", "branch": "b1"}, {"branch": "b2"}
    assert merge_budgets({"a": left}, {"a": right})["a"]["turns"] == {"": "m1", "branch": "b2"}


SUMMARY = HumanMessage("so far", id="s", additional_kwargs={"lc_source": "summarization"})
MADE = [AIMessage("", id="a"), ToolMessage("", id="t", tool_call_id="c"), SystemMessage("", id="y"), SUMMARY]


@given(st.lists(st.sampled_from(MADE)))
def test_what_programs_write_is_no_turn(made: list[Any]) -> None:
    messages = [HumanMessage("first", id="h1"), HumanMessage("go", id="h2"), *made]
    assert newest_turn(messages) == "h2"
    assert newest_turn(made) == (NOBODY if made else None)
    assert newest_turn([*messages, HumanMessage("more", id="h3")]) == "h3"
    assert newest_turn([*messages, HumanMessage("who knows")]) is None


def test_a_state_without_messages_has_no_turn() -> None:
    assert newest_turn(None) is newest_turn([]) is None


prices = st.none() | st.builds(Prices, prompt=st.sampled_from([1.0, 3.0]), generated=st.sampled_from([5.0, 15.0]))


@given(st.lists(prices, min_size=1, max_size=3), st.integers(1, 2000), st.lists(st.integers(1, 900), max_size=20))
def test_accounts_that_are_charged_as_one_hold_their_limits_in_dollars(
    given: list[Prices | None], limit: int, sizes: list[int]
) -> None:
    """Wherever the prices stand, and those of the innermost count."""
    accounts = []
    for place, each in enumerate(given):
        budget = Budget(dollars=limit * 1e-6) if each is not None else Budget(calls=15)
        ledger = RunLedger(budget, name=str(place), prices=each)
        accounts.append(Account(ledger, run=str(place), begun=0.0))
    joint, spent = JointLedger(accounts), Usage()
    for reservation, size in enumerate(sizes):
        usage = Usage(prompt_computed=size, generated=size // 10, calls=1)
        if joint.refuses(usage) is None:
            joint.reserve(reservation, usage)
            joint.charge(reservation, usage)
            joint.release(reservation)
            spent += usage
    said = [each for each in given if each is not None]
    paid = said[-1].dollars(spent) if said else 0.0
    for account, each in zip(accounts, given, strict=True):
        assert account.ledger.spent.dollars == pytest.approx(paid)
        assert each is None or paid <= limit * 1e-6 + 1e-12


class TestClock:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        now = [100.0]
        monkeypatch.setattr(account_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
        return now

    def test_time_of_scopes_inside_counts_once_while_the_clock_runs(self, clock: list[float]) -> None:
        run = Account(RunLedger(Budget(seconds=9), name="run"), run="r", begun=0.0)
        inner = Account(RunLedger(Budget(seconds=8), name="inner"), run="i", begun=0.0)
        for each in (run, inner):
            each.enter()
        steps = [Ledger(name="step", parent=JointLedger([run, inner])) for _ in range(2)]
        for _ in range(3):  # side by side
            clock[0] += 1
            for step in steps:
                step.elapse(1)
            assert steps[0].seconds_left() == 8 - (clock[0] - 100)
        run.ledger.withdraw(steps[0])  # its log is told again, its time is not
        for each in (run, inner):
            each.leave()
        clock[0] += 5
        assert run.ledger.spent.seconds == run.ledger.seconds == inner.ledger.seconds == 3

    def test_without_the_clock_a_step_tells_its_time_and_it_is_taken_back(self, clock: list[float]) -> None:
        run = Account(RunLedger(Budget(seconds=9), name="run"), run="r", begun=0.0)
        for _ in range(2):
            step = run.step("task", Budget())
            clock[0] += 1
            step.elapse(2)
        assert run.ledger.seconds == run.ledger.spent.seconds == 2


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
