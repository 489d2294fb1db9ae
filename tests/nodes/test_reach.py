"""Whose budgets a call may change: those of the graph that runs, wherever they are in it, and no others."""

import asyncio
import gc
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from types import ModuleType
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph

from tests.middleware.world import Teller, calls
from tests.nodes.world import GrammarDialect, make_engine
from tests.scripts import make_verifier
from tts_agent import BestFirst, Budget
from tts_agent.errors import ConfigError
from tts_agent.middleware import BudgetMiddleware, PlanSearchMiddleware
from tts_agent.nodes import PlanState, SharedBudget, create_planner, make_plan_node
from tts_agent.nodes import reach as reach_module

GO: Any = {"messages": [HumanMessage("go")]}
FEW: Any = {"calls": 6}

made: dict[str, Any] = {}
"""Graphs that functions find by the name of this global."""


def settings(engine: Any, **others: Any) -> dict[str, Any]:
    dialect = GrammarDialect(engine, solvable=False)
    search = {"strategy": BestFirst(k=2), "verifier": make_verifier(engine), "budget": Budget(calls=20)}
    return {"dialect": dialect, **search, **others}


def plan(name: str, **others: Any) -> Any:
    engine = make_engine()
    return make_plan_node(engine, **settings(engine, name=name, **others))


def graph(*nodes: Any, **named: Any) -> Any:
    """A compiled graph of `nodes`, one after the other."""
    built: StateGraph[Any, Any, Any, Any] = StateGraph(PlanState)
    every = {**{getattr(node, "name", f"step{place}"): node for place, node in enumerate(nodes)}, **named}
    before = START
    for name, node in every.items():
        built.add_node(name, node)
        built.add_edge(before, name)
        before = name
    built.add_edge(before, END)
    return built.compile()


def limited(result: Any) -> bool:
    """Whether the override counted in the search that came last."""
    outcome = result["tts"]["outcome"]
    return outcome["limit"] == "calls" and outcome["usage"]["calls"] <= FEW["calls"]


class Step:
    """A step of one's own that runs a graph."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def run(self, state: Any) -> Any:
        return self._inner.invoke(state)

    def run_writer(self, state: Any) -> Any:
        return self._inner.writer.invoke(state)


class Bare:
    """Runs a graph and holds nothing."""

    __slots__ = ()

    def invoke(self, state: Any) -> Any:
        return made["inner"].invoke(state)


def by_global(state: Any) -> Any:
    return made["inner"].invoke(state)


def by_helper(state: Any) -> Any:
    def later() -> Any:
        return by_global(state)

    return later()


def by_import(state: Any) -> Any:
    from tests_made.writers import writer  # type: ignore[import-not-found]

    return writer.invoke(state)


def by_attribute(state: Any) -> Any:
    import tests_made.writers

    return tests_made.writers.writer.invoke(state)


def by_text(state: Any) -> Any:
    from tests_made import writers  # type: ignore[import-not-found]

    return getattr(writers, "wri" + "ter").invoke(state)


def by_any_text(state: Any) -> Any:
    from importlib import import_module

    return import_module("tests_made." + "writers").writer.invoke(state)


def by_closure(inner: Any) -> Callable[[Any], Any]:
    return lambda state: inner.invoke(state)


def by_default(inner: Any) -> Callable[[Any], Any]:
    def step(state: Any, *, graph: Any = inner) -> Any:
        return graph.invoke(state)

    return lambda state: step(state)


def by_cache(inner: Any) -> Callable[[Any], Any]:
    @lru_cache
    def get() -> Any:
        return inner

    get()
    return lambda state: get().invoke(state)


def call(inner: Any, state: Any) -> Any:
    return inner.invoke(state)


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes `inner` be found by the names that the functions above use."""

    def place(inner: Any) -> None:
        monkeypatch.setitem(made, "inner", inner)
        package, module = ModuleType("tests_made"), ModuleType("tests_made.writers")
        module.writer, package.writers = inner, module  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "tests_made", package)
        monkeypatch.setitem(sys.modules, "tests_made.writers", module)

    return place


WAYS: dict[str, Callable[[Any], Any]] = {
    "node": lambda inner: inner,
    "closure": by_closure,
    "default": by_default,
    "cache": by_cache,
    "method": lambda inner: Step(inner).run,
    "partial": lambda inner: partial(call, inner),
    "lambda": lambda inner: RunnableLambda(by_closure(inner)),
    "global": lambda inner: by_global,
    "helper": lambda inner: by_helper,
    "bare": lambda inner: partial(call, Bare()),
    "module": lambda inner: Step(sys.modules["tests_made.writers"]).run_writer,
    "import": lambda inner: by_import,
    "attribute": lambda inner: by_attribute,
    "text": lambda inner: by_text,
    "any text": lambda inner: by_any_text,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_budget_in_a_graph_that_a_node_runs_can_be_changed_by_the_call_of_the_whole(way: str, put: Any) -> None:
    inner = graph(plan("inner"))
    put(inner)
    step = WAYS[way](inner)
    # The outer node is the first that looks, and sees the name of the inner one; the inner one sees that of the outer.
    tts = {"inner": FEW, "outer": FEW}
    assert limited(graph(plan("outer"), step).invoke(GO, context={"tts": tts}))
    assert limited(graph(step, plan("outer")).invoke(GO, {"configurable": {"tts": tts}}))


def test_all_the_way_up_and_to_the_sides_of_the_graphs_around() -> None:
    inner = graph(plan("inner"))
    middle = graph(plan("middle"), sub=inner)
    tts: Any = {"run": {"calls": 99}, **dict.fromkeys(("inner", "middle", "outer", "beside"), FEW)}
    whole = graph(plan("outer"), sub=by_closure(middle), other=graph(plan("beside")))
    assert limited(whole.invoke(GO, context={"tts": tts}))
    assert limited(asyncio.run(whole.ainvoke(GO, context={"tts": tts})))


def test_a_graph_that_is_built_by_a_node_knows_itself_and_those_around_it() -> None:
    def build(state: Any) -> Any:
        return graph(plan("late")).invoke(state, {"configurable": {"tts": {"late": FEW, "outer": FEW}}})

    assert limited(graph(plan("outer"), build).invoke(GO))


def test_what_a_graph_comes_to_lead_to_later_is_found_too() -> None:
    inner: list[Any] = []

    def step(state: Any) -> Any:
        return inner[0].invoke(state) if inner else {}

    whole = graph(plan("outer"), step)
    assert limited(whole.invoke(GO, context={"tts": {"outer": FEW, "run": FEW}}))
    inner.append(graph(plan("inner")))
    assert limited(whole.invoke(GO, context={"tts": {"inner": FEW}}))


@dataclass
class Given:
    """A context with a graph."""

    graph: Any
    tts: Any


def test_a_graph_may_come_with_the_call() -> None:
    inner = graph(plan("inner"))
    engine = make_engine()
    built = StateGraph(PlanState, Given)
    built.add_node("plan", make_plan_node(engine, **settings(engine)))
    built.add_node("sub", lambda state, runtime: runtime.context.graph.invoke(state))
    built.add_edge(START, "plan")
    built.add_edge("plan", "sub")
    context = Given(inner, {"inner": FEW})
    assert built.compile().invoke(GO, context=context)["tts"]["step"] == 2


class Carried(PlanState):
    """A state with a graph."""

    graph: Any


def test_a_graph_may_be_in_the_state() -> None:
    built: StateGraph[Any, Any, Any, Any] = StateGraph(Carried)
    built.add_node("outer", plan("outer"))
    built.add_node("sub", lambda state: state["graph"].invoke({"messages": state["messages"]}))
    built.add_edge(START, "outer")
    built.add_edge("outer", "sub")
    start = {**GO, "graph": graph(plan("inner"))}
    assert limited(built.compile().invoke(start, context={"tts": {"inner": FEW, "outer": FEW}}))


@pytest.mark.parametrize("staged", [False, True])
def test_a_planner_is_known_as_a_sub_graph(staged: bool) -> None:
    engine = make_engine()
    sub = create_planner(engine, staged=staged, **settings(engine, name="inner")).compile()
    whole = graph(plan("outer"), sub=sub)
    assert limited(whole.invoke(GO, {"recursion_limit": 200}, context={"tts": {"inner": FEW, "outer": FEW}}))


@pytest.mark.parametrize("sync", [True, False])
def test_entrypoints_and_their_tasks_are_graphs_too(sync: bool) -> None:
    inner, outer = graph(plan("inner")), plan("outer")

    if sync:

        @task
        def work(state: Any) -> Any:
            return inner.invoke(state)

        @entrypoint()
        def whole(state: Any) -> Any:
            outer.invoke(state)
            return work(state).result()
    else:

        @task
        async def work(state: Any) -> Any:
            return await inner.ainvoke(state)

        @entrypoint()
        async def whole(state: Any) -> Any:
            await outer.ainvoke(state)
            return await work(state)

    for name in ("inner", "outer"):
        config: Any = {"configurable": {"tts": {"inner": FEW, "outer": FEW, name: FEW}}}
        assert limited(whole.invoke(GO, config) if sync else asyncio.run(whole.ainvoke(GO, config)))
    with pytest.raises(ConfigError, match="does not lead to \\['beside'\\]"):
        beside = plan("beside")
        config = {"configurable": {"tts": {"beside": FEW}}}
        whole.invoke(GO, config) if sync else asyncio.run(whole.ainvoke(GO, config))
    del beside


def test_agents_know_their_searches_their_budgets_and_the_graphs_of_their_tools() -> None:
    inner = graph(plan("inner"))
    seen: list[Any] = []

    def consult(question: str) -> str:
        """Ask a planner."""
        seen.append(inner.invoke({"messages": [HumanMessage(question)]}))
        return "done"

    def say(messages: Any, call: int) -> AIMessage | str:
        return calls("consult", question="go") if len(messages) == 1 else "fine"

    model, team = Teller(say), SharedBudget(Budget(calls=50), name="team")
    middleware = [BudgetMiddleware(team), BudgetMiddleware(Budget(calls=50)), PlanSearchMiddleware(4)]
    tts = dict.fromkeys(("inner", "team", "agent"), FEW) | {"PlanSearchMiddleware": {"calls": 2}, "run": FEW}
    create_agent(model, [consult], middleware=middleware).invoke(GO, context={"tts": tts})
    assert limited(seen[0]) and model.served.calls == 4


class TestRefused:
    """Names that nothing reads in the graph that runs."""

    def test_a_planner_of_another_graph(self) -> None:
        beside = graph(plan("beside"))
        whole = graph(plan("outer"), by_closure(graph(plan("inner"))))
        why = (
            r"context.tts names \['beside', 'nobody'\], which have no budget here; known: \*, inner, outer, run; this "
            r"graph does not lead to \['beside'\]: change a budget in the call that runs its graph"
        )
        with pytest.raises(ConfigError, match=why):
            whole.invoke(GO, context={"tts": {"beside": FEW, "nobody": FEW, "outer": FEW}})
        assert limited(beside.invoke(GO, context={"tts": {"beside": FEW}}))

    def test_a_planner_beside_in_the_same_module(self, put: Any) -> None:
        inner = graph(plan("inner"))
        put(inner)
        for other in (lambda state: {}, by_closure(graph(lambda state: {}))):
            with pytest.raises(ConfigError, match="does not lead to"):
                graph(plan("outer"), other).invoke(GO, context={"tts": {"inner": FEW}})

    def test_a_planner_that_a_node_makes_itself_which_every_name_reaches(self) -> None:
        whole = graph(plan("outer"), lambda state: graph(plan("late")).invoke(state))
        with pytest.raises(ConfigError, match="'late'.*use '\\*' for planners that a node makes itself"):
            whole.invoke(GO, context={"tts": {"late": FEW, "outer": FEW}})
        assert limited(whole.invoke(GO, context={"tts": {"*": FEW}}))

    def test_a_search_of_another_agent_and_a_run_that_no_planner_has(self) -> None:
        other = PlanSearchMiddleware(2)
        model = Teller(lambda messages, call: "fine")

        class Mine(PlanSearchMiddleware):
            pass

        agent = create_agent(model, [], middleware=[Mine(2)])
        for name in ("PlanSearchMiddleware", "run"):
            with pytest.raises(ConfigError, match="have no budget here; known: \\*, Mine;"):
                agent.invoke(GO, context={"tts": {name: FEW}})
        assert model.served.calls == 0
        agent.invoke(GO, context={"tts": {"Mine": FEW}})
        del other

    @pytest.mark.parametrize("how", ["context", "configurable"])
    def test_the_plain_run_budget_of_a_planner_that_has_a_shared_one(self, how: str) -> None:
        for shared, known in ((SharedBudget(Budget(calls=40), name="team"), False), (None, True)):
            whole = graph(plan("outer", run_budget=shared))
            given: Any = {"tts": {"run": FEW}}
            options: Any = {"context": given} if how == "context" else {"config": {"configurable": given}}
            if known:
                assert limited(whole.invoke(GO, **options))
                continue
            with pytest.raises(ConfigError, match="known: \\*, outer, team; 'run' is a plain run_budget"):
                whole.invoke(GO, **options)
        shared = SharedBudget(Budget(calls=40))  # this one is named so
        assert limited(graph(plan("outer", run_budget=shared)).invoke(GO, context={"tts": {"run": FEW}}))

    def test_a_stage_of_another_graph(self) -> None:
        engine = make_engine()
        shared = SharedBudget(Budget(calls=40), name="team")
        staged = create_planner(engine, staged=True, **settings(engine, name="mine", run_budget=shared)).compile()
        beside = create_planner(engine, staged=True, **settings(engine, name="beside")).compile()
        for name in ("beside", "run"):
            with pytest.raises(ConfigError, match="known: \\*, mine, team"):
                staged.invoke(GO, {"recursion_limit": 200}, context={"tts": {name: FEW}})
        tts = {"mine": FEW, "team": {"calls": 30}}
        assert limited(staged.invoke(GO, {"recursion_limit": 200}, context={"tts": tts}))
        del beside


def test_beyond_what_can_be_looked_at_every_name_of_the_process_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach_module, "LIMIT", 20)
    beside = plan("beside")
    graph(plan("outer")).invoke(GO, context={"tts": {"beside": FEW, "outer": FEW}})
    with pytest.raises(ConfigError, match="nobody"):
        graph(plan("outer")).invoke(GO, context={"tts": {"nobody": FEW}})
    del beside


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Has one entry for each walk over a graph."""
    walks: list[int] = []
    walk = reach_module._walk

    def counted(roots: Any) -> Any:
        walks.append(1)
        return walk(roots)

    monkeypatch.setattr(reach_module, "_walk", counted)
    return walks


def test_a_graph_is_looked_at_once_and_not_at_all_for_its_own_names(looked: list[int]) -> None:
    whole = graph(plan("outer"), plan("second"))
    own = graph(create_agent(Teller(lambda m, c: "fine"), [], middleware=[PlanSearchMiddleware(2)]))
    own.invoke(GO, context={"tts": {"*": FEW, "PlanSearchMiddleware": FEW}})
    whole.invoke(GO)
    assert not looked
    for _ in range(3):
        whole.invoke(GO, context={"tts": {"outer": FEW, "second": FEW}})
    assert len(looked) == 1


def test_a_graph_that_is_too_large_is_looked_at_once(looked: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach_module, "LIMIT", 20)
    whole = graph(plan("outer"), plan("second"))
    for _ in range(3):
        whole.invoke(GO, context={"tts": {"outer": FEW, "second": FEW}})
    assert len(looked) == 1


def test_no_graph_is_kept_alive_for_what_was_found() -> None:
    nodes = []
    for _ in range(6):
        whole = graph(plan("outer"), plan("second"))
        whole.invoke(GO, context={"tts": {"outer": FEW, "second": FEW}})
        nodes.append(weakref.ref(whole.nodes["outer"]))
    del whole
    gc.collect()
    assert sum(node() is not None for node in nodes) < 3  # the newest may still be known to the threads that ran it
