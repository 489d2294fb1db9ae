"""Plan calls of one task, one after the other or side by side: each is a search of its own, killed or not."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from itertools import product
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, RetryPolicy, interrupt

from tests.nodes.table import CountdownEngine, make_engine
from tools.calculator import calculator
from tts_agent import BestFirst, Budget
from tts_agent.engines import Fault
from tts_agent.errors import EngineUnavailable, LogError
from tts_agent.nodes import PlanState, SharedBudget, make_plan_node
from tts_agent.pocket import countdown_verifier
from tts_agent.pocket.countdown import legal_steps
from tts_agent.pocket.dialect import CountdownDialect

GO: Any = {"messages": [HumanMessage("go")]}
THREAD: Any = {"configurable": {"thread_id": "1"}}
NUMBERS = [(8, 5, 3, 1), (2, 7, 3, 4), (1, 2, 3, 4)]
PUZZLES = [f"Make {goal} from {' '.join(map(str, some))}" for goal, some in zip((24, 17, 10), NUMBERS, strict=True)]
HOW = ["one by one", "threads", "async", "gather"]

Call = tuple[str, int]
"""The name of a planner and the number of its puzzle."""


class Stopped(Exception):
    """The node broke off after its calls."""


def planners(engine: CountdownEngine, **chosen: Any) -> dict[str, Any]:
    """Two planners that sample differently."""
    options: dict[str, Any] = {"strategy": BestFirst(k=3, max_expansions=4), "flush_events": 6} | chosen
    options = {"verifier": countdown_verifier(engine)} | options
    dialect = CountdownDialect(engine)
    return {
        name: make_plan_node(engine, dialect=dialect, seed=seed, name=name, **options)
        for name, seed in (("a", 0), ("b", 7))
    }


def asks(call: Call) -> Any:
    return {"messages": [HumanMessage(PUZZLES[call[1]])]}


def make_agent(
    nodes: dict[str, Any],
    calls: Sequence[Call],
    how: str,
    saver: Any = None,
    *,
    retry: RetryPolicy | None = None,
    breaks: bool = False,
) -> Callable[[Any], Any]:
    """An agent of one node that makes `calls`, and maybe breaks off then.

    It takes what a graph is invoked with, and gives what each call wrote, or the interrupts.
    """
    done: list[Any] = []

    def ended(updates: list[Any]) -> Any:
        if breaks:
            raise Stopped
        done[:] = updates
        return {"messages": []}

    def plan(state: PlanState) -> Any:
        if how == "one by one":
            return ended([nodes[call[0]].invoke(asks(call)) for call in calls])
        with ThreadPoolExecutor(len(calls)) as pool:
            futures = [pool.submit(copy_context().run, nodes[call[0]].invoke, asks(call)) for call in calls]
            return ended([future.result() for future in futures])

    async def aplan(state: PlanState) -> Any:
        if how == "async":
            return ended([await nodes[call[0]].ainvoke(asks(call)) for call in calls])
        return ended(await asyncio.gather(*(nodes[call[0]].ainvoke(asks(call)) for call in calls)))

    asynchronous = how in ("async", "gather")
    graph = StateGraph(PlanState)
    graph.add_node("f", aplan if asynchronous else plan, retry_policy=retry)
    graph.add_edge(START, "f")
    graph.add_edge("f", END)
    agent = graph.compile(checkpointer=saver)

    def invoke(value: Any) -> Any:
        result = asyncio.run(agent.ainvoke(value, THREAD)) if asynchronous else agent.invoke(value, THREAD)
        return result.get("__interrupt__", done)

    return invoke


def told(updates: Sequence[Any]) -> list[Any]:
    """What was decided, and at what price."""
    notes = [update["tts"] for update in updates]
    return [(note["outcome"]["decision"], note["outcome"]["thoughts"], note["totals"]["usage"]) for note in notes]


def alone(call: Call) -> Any:
    """What a call says that is made outside of any graph."""
    return told([planners(make_engine())[call[0]].invoke(asks(call))])[0]


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("how", HOW)
def test_each_call_searches_for_itself(how: str, stored: bool) -> None:
    calls = [("a", 0), ("b", 0), ("a", 1), ("a", 0)]
    engine = make_engine()
    done = make_agent(planners(engine), calls, how, InMemorySaver() if stored else None)(GO)
    assert told(done) == [alone(call) for call in calls]
    assert engine.served.calls == sum(update["tts"]["totals"]["usage"]["calls"] for update in done)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_entrypoint_plans_and_acts_to_the_end(asynchronous: bool) -> None:
    node = planners(make_engine(), strategy=BestFirst(k=3), budget=Budget(calls=30))["a"]

    def begun(puzzle: str) -> Any:
        return {"messages": [HumanMessage(puzzle, id="0")], "tts": {}}

    def acted(state: Any, update: Any) -> Any:
        (decision,) = update["messages"]
        results = [calculator.invoke(call) for call in decision.tool_calls]
        return {"messages": [*state["messages"], decision, *results], "tts": update["tts"]}

    @entrypoint(checkpointer=InMemorySaver())
    def play(puzzle: str) -> str:
        state = begun(puzzle)
        while state["messages"][-1].type != "ai":
            state = acted(state, node.invoke(state))
        return str(state["messages"][-1].text)

    @entrypoint(checkpointer=InMemorySaver())
    async def aplay(puzzle: str) -> str:
        state = begun(puzzle)
        while state["messages"][-1].type != "ai":
            state = acted(state, await node.ainvoke(state))
        return str(state["messages"][-1].text)

    said = asyncio.run(aplay.ainvoke(PUZZLES[0], THREAD)) if asynchronous else play.invoke(PUZZLES[0], THREAD)
    assert said.endswith("= 24. Solved.")


CALLS = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2)), min_size=1, max_size=4)
ORDER = st.randoms(use_true_random=False)


@given(calls=CALLS, before=st.sampled_from(HOW), after=st.sampled_from(HOW), order=ORDER)
@settings(deadline=None, max_examples=40)
def test_calls_that_had_ended_are_told_again_in_any_order(
    calls: list[Call], before: str, after: str, order: Random
) -> None:
    first, second, saver = make_engine(), make_engine(), InMemorySaver()
    with pytest.raises(Stopped):
        make_agent(planners(first), calls, before, saver, breaks=True)(GO)
    again = order.sample(calls, len(calls))
    done = make_agent(planners(second), again, after, saver)(None)
    assert [each[:2] for each in told(done)] == [alone(call)[:2] for call in again] and not second.requests


def outage(first: int) -> dict[int, Fault]:
    """Enough requests in a row are refused for the engine to give up."""
    return {place: Fault("refused") for place in range(first, first + 6)}


def used(updates: Sequence[Any], unit: str) -> int:
    return sum(usage.get(unit, 0) for _, _, usage in told(updates))


@given(calls=CALLS, how=st.sampled_from(HOW), first=st.integers(0, 25), fresh=st.booleans(), order=ORDER)
@settings(deadline=None, max_examples=40)
def test_calls_that_fail_go_on_and_are_paid_once(
    calls: list[Call], how: str, first: int, fresh: bool, order: Random
) -> None:
    engine, saver = make_engine(faults=outage(first)), InMemorySaver()
    nodes, value, done = planners(engine, verifier=None), GO, None
    while done is None:
        try:
            done = make_agent(nodes, calls, how, saver)(value)
        except EngineUnavailable:
            value = None
            calls = order.sample(calls, len(calls)) if how == "gather" else calls  # else their order tells them apart
            nodes = planners(engine, verifier=None) if fresh else nodes
    for (_, puzzle), (decision, _, _) in zip(calls, told(done), strict=True):
        assert decision is None or decision in {step.text() for step in legal_steps(NUMBERS[puzzle])}
    for unit in ("prompt_computed", "generated"):
        assert used(done, unit) == getattr(engine.served, unit)


@pytest.mark.parametrize("how", HOW)
def test_a_retry_policy_goes_on_with_each_call(how: str) -> None:
    engine = make_engine(faults=outage(9))
    policy = RetryPolicy(initial_interval=0.01, max_attempts=4, retry_on=EngineUnavailable)
    nodes, calls = planners(engine, verifier=None), [("a", 0), ("b", 0), ("a", 1)]
    done = make_agent(nodes, calls, how, InMemorySaver(), retry=policy)(GO)
    for unit in ("prompt_computed", "generated"):
        assert used(done, unit) == getattr(engine.served, unit)


@pytest.mark.parametrize("how", ["one by one", "async"])
def test_each_call_is_reviewed(how: str) -> None:
    calls = [("a", 0), ("b", 0), ("a", 1)]
    engine = make_engine()
    invoke = make_agent(planners(engine, review=2), calls, how, InMemorySaver())
    values = [GO, *(Command(resume={"edit": {"content": f"mine {number}"}}) for number in range(len(calls)))]
    for value in values[:-1]:
        (asked,) = invoke(value)
        assert asked.value["type"] == "tts.review"
    assert [update["messages"][0].text for update in invoke(values[-1])] == ["mine 0", "mine 1", "mine 2"]
    assert engine.served.calls == sum(alone(call)[2]["calls"] for call in calls)


def test_a_call_that_changed_before_it_was_resumed_is_refused() -> None:
    saver = InMemorySaver()
    with pytest.raises(EngineUnavailable):
        make_agent(planners(make_engine(faults=outage(1)), verifier=None), [("a", 0)], "one by one", saver)(GO)
    engine = make_engine()
    with pytest.raises(LogError, match=r"another root.*resume with what it was begun with"):
        make_agent(planners(engine, verifier=None), [("a", 1)], "one by one", saver)(None)
    assert not engine.requests


@pytest.mark.parametrize("limit", [20, 40])
@pytest.mark.parametrize("how", HOW)
def test_calls_side_by_side_never_pass_a_shared_budget(how: str, limit: int) -> None:
    engine, shared = make_engine(pace=0.001), SharedBudget(Budget(calls=limit))
    calls = [(name, puzzle) for name in "ab" for puzzle in (0, 1, 1, 2)]
    done = make_agent(planners(engine, run_budget=shared), calls, how)(GO)
    known = max(update["tts_budgets"]["run"]["usage"].get("calls", 0) for update in done)
    assert known == engine.served.calls <= limit


@pytest.mark.parametrize("most", [1, 2, 3])
@pytest.mark.parametrize("stored", [False, True])
def test_a_bound_on_concurrency_is_enough_for_a_plan_node(stored: bool, most: int) -> None:
    graph = StateGraph(PlanState)
    graph.add_node("plan", planners(make_engine())["a"])
    graph.add_edge(START, "plan")
    agent = graph.compile(checkpointer=InMemorySaver() if stored else None)
    configs: list[Any] = [{"configurable": {"thread_id": str(i)}, "max_concurrency": most} for i in range(6)]
    puzzle = asks(("a", 0))
    done = [agent.invoke(puzzle, configs[0]), *agent.batch([puzzle, puzzle], configs[1:3])]
    done += [asyncio.run(agent.ainvoke(puzzle, configs[3])), *asyncio.run(agent.abatch([puzzle, puzzle], configs[4:]))]
    assert told(done) == [alone(("a", 0))] * 6


def make_breaking(
    engine: CountdownEngine, shared: SharedBudget, saver: Any, *, how: str, breaks: str
) -> Callable[[Any, Any], Any]:
    """A graph whose node makes three plan calls and breaks off after them, twice, before it comes to its end.

    It is given the config and how durable it is, and gives the decisions of each attempt and the final state.
    """
    nodes, calls = planners(engine, run_budget=shared), [("a", 0), ("b", 1), ("a", 0)]
    decided: list[Any] = []

    def ended(updates: list[Any]) -> Any:
        decided.append([update["tts"]["outcome"]["decision"] for update in updates])
        if breaks == "interrupt":
            interrupt("one")
            interrupt("two")
        elif len(decided) < 3:
            raise Stopped
        return {"messages": [], "tts_budgets": updates[-1]["tts_budgets"]}

    def plan(state: PlanState) -> Any:
        return ended([nodes[call[0]].invoke(asks(call)) for call in calls])

    async def aplan(state: PlanState) -> Any:
        return ended(await asyncio.gather(*(nodes[call[0]].ainvoke(asks(call)) for call in calls)))

    policy = RetryPolicy(initial_interval=0.01, max_attempts=4, retry_on=Stopped) if breaks == "retry" else None
    graph = StateGraph(PlanState)
    graph.add_node("f", aplan if how == "gather" else plan, retry_policy=policy)
    graph.add_edge(START, "f")
    graph.add_edge("f", END)
    agent = graph.compile(checkpointer=saver)

    def invoke(config: Any, durability: Any) -> Any:
        value: Any = GO
        while True:
            try:
                if how == "gather":
                    state = asyncio.run(agent.ainvoke(value, config, durability=durability))
                else:
                    state = agent.invoke(value, config, durability=durability)
            except Stopped:
                value = None
                continue
            if "__interrupt__" not in state:
                return decided, state
            value = Command(resume=True)

    return invoke


BREAKS = ["retry", "raise", "interrupt"]


@pytest.mark.parametrize(("breaks", "durability"), [*product(BREAKS, ["sync", "async", "exit"]), ("retry", None)])
@pytest.mark.parametrize("how", ["one by one", "gather"])
def test_calls_whose_node_breaks_off_later_are_paid_once(how: str, breaks: str, durability: Any) -> None:
    """Where nothing is stored before the graph ends, they are searched again, and all searches cost."""
    engine, shared = make_engine(), SharedBudget(Budget(calls=400))
    saver = None if durability is None else InMemorySaver()
    decided, state = make_breaking(engine, shared, saver, how=how, breaks=breaks)(THREAD, durability)
    entry = state["tts_budgets"]["run"]
    assert len(decided) == 3 and decided[0] == decided[1] == decided[2]
    for unit in ("calls", "prompt_computed", "generated"):
        assert entry["usage"][unit] == getattr(engine.served, unit)
    assert not entry["lost"]


@pytest.mark.parametrize("breaks", BREAKS)
@pytest.mark.parametrize("limit", [16, 20, 24, 28, 37])
def test_calls_that_had_ended_are_told_again_where_others_left_little_room(limit: int, breaks: str) -> None:
    engine, shared = make_engine(), SharedBudget(Budget(calls=limit))
    decided, state = make_breaking(engine, shared, InMemorySaver(), how="one by one", breaks=breaks)(THREAD, "sync")
    assert decided[0] == decided[1] == decided[2]
    assert state["tts_budgets"]["run"]["usage"]["calls"] == engine.served.calls <= limit


def test_a_call_whose_end_was_not_stored_is_paid_for_what_it_samples_anew() -> None:
    class Forgets(InMemorySaver):
        """What tells a search's end is lost, once."""

        forgot = False

        def put_writes(self, config: Any, writes: Any, *args: Any, **more: Any) -> None:
            if not self.forgot and "'chosen'" in repr(writes):
                self.forgot, writes = True, []
            super().put_writes(config, writes, *args, **more)

    engine, shared, saver = make_engine(), SharedBudget(Budget(calls=400)), Forgets()
    decided, state = make_breaking(engine, shared, saver, how="one by one", breaks="retry")(THREAD, "sync")
    entry = state["tts_budgets"]["run"]
    assert saver.forgot and len(decided) == 3
    assert entry["usage"]["calls"] + entry["lost"]["calls"] >= engine.served.calls > entry["usage"]["calls"]
