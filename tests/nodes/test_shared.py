"""One budget for nodes, sub-graphs, branches and threads: never passed together, known after a restart, paid once."""

import asyncio
import operator
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Send, interrupt

from tests.nodes.world import GrammarDialect, make_engine
from tests.scripts import make_verifier
from tts_agent import BestFirst, Budget, ScriptedEngine
from tts_agent.engines import Fault
from tts_agent.errors import ConfigError, EngineUnavailable
from tts_agent.nodes import PlanState, SharedBudget, make_plan_node
from tts_agent.nodes import shared as shared_module

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
    outage = {place: Fault("refused") for place in range(10, 18)}
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


def asking(engine: ScriptedEngine, shared: SharedBudget, branch: str, *, first: bool) -> Any:
    """A graph with a node before, a branch with messages of its own, a human who is asked, and a node after that."""
    other = node(engine, shared, "branch")

    def subtask(state: Any, number: int) -> Any:
        ids = {"id": "mine"} if branch == "with an id" else {}
        return {"messages": [HumanMessage(f"subtask {number}", **ids)], "tts_budgets": state.get("tts_budgets") or {}}

    def call(state: Any) -> Any:
        return {"tts_budgets": other.invoke(subtask(state, 0))["tts_budgets"]}

    def work(state: Any) -> Any:
        inner = StateGraph(PlanState)
        inner.add_node("plan", other)
        inner.add_edge(START, "plan")
        return {"tts_budgets": inner.compile().invoke(subtask(state, 0))["tts_budgets"]}

    def ask(state: Any) -> Any:
        interrupt("go on?")
        return {}

    graph = StateGraph(PlanState)
    graph.add_node("before", (lambda state: {}) if first else node(engine, shared, "before"))
    graph.add_node("branch", {"sends": other, "with a graph": work}.get(branch, call))
    graph.add_node("ask", ask)
    graph.add_node("between", lambda state: {})
    graph.add_node("after", node(engine, shared, "after"))
    graph.add_edge(START, "before")
    if branch == "sends":
        graph.add_conditional_edges("before", lambda s: [Send("branch", subtask(s, n)) for n in range(2)], ["branch"])
    else:
        graph.add_edge("before", "branch")
    for before, after in (("branch", "ask"), ("ask", "between"), ("between", "after"), ("after", END)):
        graph.add_edge(before, after)
    return graph


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    ("branch", "first"),
    [
        ("sends", False),
        ("sends", True),
        ("calls", False),
        ("calls", True),
        ("with an id", False),
        ("with an id", True),
        ("with a graph", False),
    ],
)
def test_messages_of_a_branch_do_not_end_a_run_that_a_human_interrupts(branch: str, first: bool, fresh: bool) -> None:
    engine, saver = make_engine(), InMemorySaver()

    def make() -> Any:
        return asking(engine, SharedBudget(Budget(calls=LIMIT)), branch, first=first).compile(checkpointer=saver)

    agent = make()
    for _ in range(2):
        before = served(engine)
        assert "__interrupt__" in agent.invoke(GO, THREAD)
        agent = make() if fresh else agent
        result = agent.invoke(Command(resume="yes"), THREAD)
        assert "__interrupt__" not in result
        assert spent(result) == served(engine) - before <= LIMIT


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("deep", [0, 1, 2])
def test_a_fork_from_before_anything_was_spent_goes_on_in_its_account(deep: int, sync: bool) -> None:
    engine, shared = make_engine(), SharedBudget(Budget(calls=LIMIT))
    plan = node(engine, shared)
    for _ in range(deep):
        plan = chain(plan).compile()
    agent = chain(plan).compile(checkpointer=InMemorySaver())
    agent.invoke(GO, THREAD)
    before = next(state for state in agent.get_state_history(THREAD) if state.next == ("n0",))
    for _ in range(3):
        result = agent.invoke(None, before.config) if sync else asyncio.run(agent.ainvoke(None, before.config))
    assert spent(result) == served(engine) <= LIMIT
    begun = served(engine)
    assert spent(agent.invoke(GO, THREAD)) == served(engine) - begun  # what somebody writes begins a new run


class TestTwoBudgetsOfOneName:
    def test_in_one_state_they_are_refused(self) -> None:
        engine = make_engine()
        plans = [node(engine, SharedBudget(Budget(calls=5)), name) for name in ("p", "q")]
        with pytest.raises(ConfigError, match="two budgets named 'run'.*name="):
            chain(*plans).compile().invoke(GO)

    def test_side_by_side_they_are_refused_when_one_meets_what_the_other_wrote(self) -> None:
        engine = make_engine()
        left, right = (node(engine, SharedBudget(Budget(calls=9)), name) for name in ("left", "right"))
        graph = StateGraph(WithBranches)

        def branch(plan: Any) -> Any:
            return lambda state: {"tts_budgets": plan.invoke(GO)["tts_budgets"]}

        for name, plan in (("left", left), ("right", right)):
            graph.add_node(name, branch(plan))
            graph.add_edge(START, name)
            graph.add_edge(name, "after")
        graph.add_node("after", left)
        graph.add_node("last", right)
        graph.add_edge("after", "last")
        with pytest.raises(ConfigError, match="two budgets named 'run'"):
            graph.compile().invoke(GO)

    @pytest.mark.parametrize("sync", [True, False])
    def test_one_budget_in_nodes_sub_graphs_and_graphs_compiled_twice_is_one(self, sync: bool) -> None:
        engine, saver, shared = make_engine(), InMemorySaver(), SharedBudget(Budget(calls=LIMIT))
        inner = chain(node(engine, shared, "p"))
        graph = chain(node(engine, shared, "q"), inner.compile(), inner.compile(), node(engine, shared, "r"))
        agents = [graph.compile(checkpointer=saver) for _ in range(2)]
        for runs, agent in enumerate([*agents, *agents], start=1):
            result = agent.invoke(GO, THREAD) if sync else asyncio.run(agent.ainvoke(GO, THREAD))
            assert spent(result) == served(engine) / runs <= LIMIT

    def test_graphs_of_one_thread_may_each_have_one(self) -> None:
        engine, saver = make_engine(), InMemorySaver()
        budgets = [SharedBudget(Budget(calls=LIMIT), per="thread") for _ in range(3)]
        for shared in budgets:
            result = chain(node(engine, shared)).compile(checkpointer=saver).invoke(GO, THREAD)
            assert spent(result) == served(engine) <= LIMIT

    def test_a_graph_with_a_state_of_its_own_may_have_one(self) -> None:
        engine = make_engine()
        inner = chain(node(engine, SharedBudget(Budget(calls=9)), "inner")).compile()

        def call(state: Any) -> Any:
            assert spent(inner.invoke(GO)) <= 9
            return {}

        before, after = (node(engine, shared) for shared in [SharedBudget(Budget(calls=40))] * 2)
        assert spent(chain(before, call, after).compile().invoke(GO)) <= 40


@pytest.mark.parametrize("per", ["run", "thread"])
def test_runs_that_are_over_are_forgotten(per: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_module, "KEPT", 3)
    monkeypatch.setattr(shared_module, "IDLE", 0.0)
    engine, shared = make_engine(), SharedBudget(Budget(calls=10**6), per=per)
    agent = chain(node(engine, shared)).compile()
    for place in range(12):
        agent.invoke(GO, {"configurable": {"thread_id": str(place // 6)}})
        agent.invoke(GO, {"configurable": {"thread_id": f"other {place}"}})
    tables = (shared._accounts, shared._runs, shared._threads)
    assert max(map(len, tables)) <= 5
    assert len([run for run, owner in shared_module._owners.items() if owner is shared]) <= 5


def test_a_thread_with_many_runs_keeps_no_object_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_module, "KEPT", 3)
    engine, shared = make_engine(), SharedBudget(Budget(calls=LIMIT), per="thread")
    agent = chain(node(engine, shared)).compile(checkpointer=InMemorySaver())
    for _ in range(12):
        result = agent.invoke(GO, THREAD)
    assert len(shared._runs) <= 4 and spent(result) == served(engine) <= LIMIT


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
