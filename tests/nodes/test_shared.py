"""One budget for nodes, sub-graphs, branches and threads: never passed together, known after a restart, paid once."""

import asyncio
import operator
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

from tests.nodes.world import GrammarDialect, make_engine
from tests.scripts import make_verifier
from tts_agent import BestFirst, Budget, ScriptedEngine
from tts_agent.engines import Fault
from tts_agent.errors import ConfigError, EngineUnavailable
from tts_agent.nodes import PlanState, SharedBudget, make_plan_node

GO: Any = {"messages": [("user", "go")]}  # another message each time
THREAD: Any = {"configurable": {"thread_id": "1"}}
LIMIT = 60


def node(engine: ScriptedEngine, shared: SharedBudget, name: str = "plan", **settings: Any) -> Any:
    chosen: dict[str, Any] = {"verifier": make_verifier(engine), **settings}
    return make_plan_node(
        engine,
        dialect=GrammarDialect(engine, solvable=False),
        strategy=BestFirst(k=3, parallel=2, max_expansions=8),
        run_budget=shared,
        name=name,
        **chosen,
    )


def spent(result: Any, name: str = "run") -> int:
    entry = result["tts_budgets"][name]
    return int(entry["usage"].get("calls", 0) + entry["lost"].get("calls", 0))


def served(engine: ScriptedEngine) -> int:
    return int(engine.served.calls)


def chain(*nodes: Any) -> Any:
    """A graph of `nodes` one after the other."""
    graph = StateGraph(PlanState)
    names = [f"n{place}" for place in range(len(nodes))]
    for name, each in zip(names, nodes, strict=True):
        graph.add_node(name, each)
    for before, after in zip([START, *names], [*names, END], strict=True):
        graph.add_edge(before, after)
    return graph


def fan_out(plan: Any, n: int) -> Any:
    """A graph of `n` branches side by side, each with messages of its own."""

    async def branch(state: Any) -> Any:
        update = await plan.ainvoke(state)
        return {"done": [update["tts"]["outcome"]], "tts_budgets": update["tts_budgets"]}

    graph = StateGraph(WithBranches)
    graph.add_node("branch", branch)
    graph.add_conditional_edges(START, lambda _: [Send("branch", GO) for _ in range(n)], ["branch"])
    graph.add_edge("branch", END)
    return graph


class WithBranches(PlanState):
    done: Annotated[list[Any], operator.add]


@pytest.mark.parametrize("sync", [True, False])
def test_nodes_one_after_the_other_spend_one_budget_and_a_new_run_begins_anew(sync: bool) -> None:
    engine, shared = make_engine(), SharedBudget(Budget(calls=LIMIT))
    agent = chain(*(node(engine, shared, f"p{i}") for i in range(4))).compile(checkpointer=InMemorySaver())
    for runs in (1, 2):
        result = agent.invoke(GO, THREAD) if sync else asyncio.run(agent.ainvoke(GO, THREAD))
        assert spent(result) <= LIMIT and served(engine) <= runs * LIMIT
        assert spent(result) == served(engine) / runs
        assert result["tts"]["outcome"]["limit"] == "calls"


@pytest.mark.parametrize("n", [1, 2, 16])
async def test_branches_side_by_side_never_pass_it(n: int) -> None:
    engine, shared = make_engine(), SharedBudget(Budget(calls=LIMIT))
    result = await fan_out(node(engine, shared), n).compile().ainvoke({"messages": []})
    assert len(result["done"]) == n
    assert spent(result) == served(engine) <= LIMIT
    assert n == 1 or any(outcome["limit"] == "calls" for outcome in result["done"])


async def test_a_sub_graph_counts_whether_or_not_its_state_has_the_key() -> None:
    class Plain(TypedDict):
        messages: list[Any]

    for schema in (PlanState, Plain):
        engine, shared = make_engine(), SharedBudget(Budget(calls=LIMIT))
        inner = StateGraph(schema)
        inner.add_node("plan", node(engine, shared, "inner"))
        inner.add_edge(START, "plan")
        inner.add_edge("plan", END)
        compiled = inner.compile()
        agent = chain(node(engine, shared, "before"), compiled, node(engine, shared, "after")).compile()
        result = await agent.ainvoke(GO)
        assert spent(result) == served(engine) <= LIMIT


@pytest.mark.parametrize("fresh", [False, True])
def test_a_budget_of_a_thread_spans_runs_and_processes(fresh: bool) -> None:
    engine, saver = make_engine(), InMemorySaver()

    def make() -> Any:
        return chain(node(engine, SharedBudget(Budget(calls=LIMIT), per="thread"))).compile(checkpointer=saver)

    agent = make()
    for _ in range(4):
        agent = make() if fresh else agent
        result = agent.invoke(GO, THREAD)
        assert spent(result) == served(engine) <= LIMIT
    assert result["tts"]["outcome"]["limit"] == "calls"


@pytest.mark.parametrize("fresh", [False, True])
def test_a_step_that_fails_and_is_resumed_is_paid_once(fresh: bool) -> None:
    outage = {place: Fault("refused") for place in range(10, 16)}
    engine, saver = make_engine(faults=outage), InMemorySaver()

    def make() -> Any:
        shared = SharedBudget(Budget(calls=400))
        settings: Any = {"flush_events": 8, "verifier": None}
        return chain(*(node(engine, shared, name, **settings) for name in ("p0", "p1"))).compile(checkpointer=saver)

    agent = make()
    for start in (GO, None):
        with pytest.raises(EngineUnavailable):
            agent.invoke(start, THREAD)
        agent = make() if fresh else agent
    result = agent.invoke(None, THREAD)
    entry = result["tts_budgets"]["run"]
    # Refused requests are charged in full as lost, and nothing that was answered is paid twice.
    assert entry["usage"]["calls"] == served(engine)
    assert entry["usage"]["generated"] == engine.served.generated


def test_it_can_be_raised_for_a_run_and_its_name_is_known() -> None:
    engine, shared = make_engine(), SharedBudget(Budget(calls=20), name="team")
    agent = chain(node(engine, shared)).compile()
    assert spent(agent.invoke(GO, {"configurable": {"tts": {"team": {"calls": 8}}}}), "team") <= 8
    with pytest.raises(ConfigError, match="teem.*team"):
        agent.invoke(GO, {"configurable": {"tts": {"teem": {"calls": 8}}}})


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="per='day'"):
        SharedBudget(Budget(calls=1), per="day")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs prices"):
        SharedBudget(Budget(dollars=1))
