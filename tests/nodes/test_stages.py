"""The planning step as nodes of its own: expand, verify, select."""

import asyncio
import contextlib
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import TimeoutPolicy

from tests.middleware.world import Teller
from tests.nodes import table, world
from tests.nodes.test_plan import GO, THREAD, tree
from tests.scripts import judge as scripted_judge
from tests.scripts import make_task, make_verifier
from tools.calculator import calculator
from tts_agent import (
    Beam,
    BestFirst,
    BestOfN,
    Budget,
    Greedy,
    Prefix,
    Sampling,
    Task,
    ThoughtTree,
    Usage,
    Verdict,
    load_engine,
)
from tts_agent.dialect import Answer, Request
from tts_agent.engines import Fault
from tts_agent.engines.chat import ChatEngine
from tts_agent.errors import BudgetError, ConfigError, EngineUnavailable, LogError, SearchError
from tts_agent.nodes import (
    OutsideVerifier,
    PlanState,
    SharedBudget,
    StagedState,
    create_planner,
    create_planning_agent,
    drop,
    growable,
    judge,
    make_expand_node,
    make_select_node,
    make_verify_node,
    route_selected,
    unjudged,
)
from tts_agent.pocket import countdown_verifier
from tts_agent.pocket.dialect import CountdownDialect
from tts_agent.trace.recorder import read
from tts_agent.verifiers import CheckVerifier

SHORT = Sampling(max_tokens=64)


def make_stages(engine: Any, *, verify: Any = None, trace: Path | None = None, **settings: Any) -> Any:
    """A staged step in the scripted grammar; `verify` replaces the verify node."""
    solvable = settings.pop("solvable", True)
    chosen: dict[str, Any] = {
        "dialect": world.GrammarDialect(engine, solvable=solvable),
        "strategy": Beam(k=4, keep=3),
        "verifier": make_verifier(engine),
        "budget": world.BUDGET,
    } | settings
    graph = StateGraph(StagedState)
    graph.add_node("expand", make_expand_node(engine, **chosen))
    graph.add_node("verify", verify or make_verify_node(engine, **chosen))
    graph.add_node("select", make_select_node(engine, trace=trace, **chosen))
    graph.add_edge(START, "expand")
    graph.add_edge("expand", "verify")
    graph.add_edge("verify", "select")
    graph.add_conditional_edges("select", route_selected, {"expand": "expand", "act": END, "__end__": END})
    return graph


STRATEGIES = st.one_of(
    st.builds(Greedy, depth=st.integers(1, 6)),
    st.builds(Beam, k=st.integers(1, 4), keep=st.integers(1, 3), depth=st.integers(1, 5)),
    st.builds(
        BestFirst,
        k=st.integers(1, 4),
        parallel=st.integers(1, 4),
        max_expansions=st.integers(1, 15),
        discount=st.sampled_from([0.25, 1.0]),
        greedy_first=st.booleans(),
        enough=st.sampled_from([None, 0.9]),
    ),
    st.builds(BestOfN, n=st.integers(1, 9), width=st.integers(1, 4), enough=st.sampled_from([None, 0.8])),
    st.builds(
        BestOfN,
        n=st.none() | st.integers(1, 9),
        width=st.integers(1, 4),
        unit=st.just("thought"),
        retry=st.sampled_from(["step", "answer"]),
    ),
)
BUDGETS = st.builds(
    Budget,
    computed_tokens=st.integers(300, 8000),
    generated_tokens=st.none() | st.integers(20, 300),
    calls=st.none() | st.integers(3, 60),
    seconds=st.none() | st.integers(1, 20),
)
FAULTS = st.dictionaries(
    st.integers(0, 25),
    st.builds(Fault, st.sampled_from(["refused", "lost", "unconfirmed"]), st.integers(0, 2)),
    max_size=4,
)
cases = given(
    strategy=STRATEGIES,
    budget=BUDGETS,
    faults=FAULTS,
    seed=st.integers(0, 2**31),
    solvable=st.booleans(),
    judged=st.booleans(),
)


def check_the_same(strategy: Any, budget: Budget, faults: Any, seed: int, solvable: bool, judged: bool) -> None:
    """Staged and fused behind a barrier make the same tree and account, or raise the same."""
    found: list[Any] = []
    for make in (make_stages, world.make_graph):
        engine = world.make_engine(faults=faults)
        settings: dict[str, Any] = {"strategy": strategy, "budget": budget, "seed": seed, "barrier": True}
        settings |= {"solvable": solvable} | ({} if judged else {"verifier": None})
        with TemporaryDirectory() as folder:
            graph = make(engine, trace=Path(folder) / "trace", **settings).compile()
            try:
                result = graph.invoke(GO, {"recursion_limit": 10_000})
                found.append((tree(Path(folder) / "trace"), result["tts"]["outcome"], engine.served))
            except (EngineUnavailable, BudgetError) as error:
                found.append(type(error))
    assert found[0] == found[1]


@settings(max_examples=25, deadline=None)
@cases
def test_the_tree_is_that_of_the_fused_node_with_a_barrier(
    strategy: Any, budget: Budget, faults: Any, seed: int, solvable: bool, judged: bool
) -> None:
    check_the_same(strategy, budget, faults, seed, solvable, judged)


@pytest.mark.verify
@pytest.mark.timeout(600)
@settings(max_examples=500, deadline=None)
@cases
def test_the_tree_is_that_of_the_fused_node_in_many_cases(
    strategy: Any, budget: Budget, faults: Any, seed: int, solvable: bool, judged: bool
) -> None:
    check_the_same(strategy, budget, faults, seed, solvable, judged)


@pytest.mark.parametrize(
    "strategy",
    [Greedy(), Beam(k=3, keep=2), BestFirst(k=3, parallel=2, max_expansions=6), BestOfN(n=4, width=2)],
    ids=lambda strategy: strategy.name,
)
async def test_so_it_is_on_the_embedded_engine(strategy: Any, tmp_path: Path) -> None:
    engine = load_engine("embedded://pocket-small")
    start: Any = {"messages": [HumanMessage("Make 24 from 8 5 3 1")]}
    for staged in (True, False):
        options: dict[str, Any] = {"staged": True} if staged else {"barrier": True}
        planner = create_planner(
            engine,
            dialect=CountdownDialect(engine),
            strategy=strategy,
            verifier=countdown_verifier(engine),
            budget=Budget(computed_tokens=3000),
            trace=tmp_path / str(staged),
            **options,
        )
        await planner.compile().ainvoke(start)
    await engine.aclose()
    trees = [tree(tmp_path / str(staged)) for staged in (True, False)]
    assert trees[0] == trees[1] and trees[0]


def test_the_staged_agent_plays_as_the_fused_one(tmp_path: Path) -> None:
    played: list[list[str]] = []
    for staged in (True, False):
        engine = table.make_engine()
        agent = create_planning_agent(
            engine,
            dialect=CountdownDialect(engine),
            tools=[calculator],
            strategy=Beam(k=4, keep=3),
            verifier=countdown_verifier(engine),
            budget=Budget(computed_tokens=3000),
            trace=tmp_path / str(staged),
            staged=staged,
        ).compile(checkpointer=InMemorySaver())
        result = agent.invoke({"messages": [HumanMessage("Make 24 from 8 5 3 1")]}, THREAD)
        played.append([message.text for message in result["messages"]])
    assert played[0] == played[1]
    assert len(played[0]) > 3
    trees = [[ThoughtTree(log.events).to_json() for log in read(tmp_path / str(staged))] for staged in (True, False)]
    assert trees[0] == trees[1]


def test_every_stage_is_visible_as_an_update() -> None:
    agent = make_stages(world.make_engine()).compile()
    nodes = [node for update in agent.stream(GO, stream_mode="updates") for node in update]
    assert nodes[:6] == ["expand", "verify", "select"] * 2


async def test_the_verify_node_can_be_replaced_by_ones_own(tmp_path: Path) -> None:
    engine = world.make_engine()

    def mine(state: StagedState) -> dict[str, Any]:
        branches = unjudged(state, engine.decode)
        return judge(branches, [Verdict(score(branch), verifier="mine") for branch in branches])

    def score(branch: Any) -> float:
        return round(scripted_judge(branch.text), 3)

    outside = {"verifier": OutsideVerifier(name="mine")}
    await make_stages(engine, verify=mine, trace=tmp_path / "mine", **outside).compile().ainvoke(GO)
    inside = {"verifier": CheckVerifier(score, name="mine")}
    await make_stages(engine, trace=tmp_path / "inside", **inside).compile().ainvoke(GO)
    assert tree(tmp_path / "mine") == tree(tmp_path / "inside")
    assert any(row.get("score") for row in tree(tmp_path / "mine"))


def test_what_ones_own_verify_node_leaves_out_is_unverified_at_its_bound() -> None:
    engine = world.make_engine()

    def lazy(state: StagedState) -> dict[str, Any]:
        return judge([], [])

    outside = OutsideVerifier(name="lazy", bound=Usage(prompt_computed=7, calls=1).as_verifier())
    result = make_stages(engine, verify=lazy, verifier=outside).compile().invoke(GO)
    usage = result["tts"]["outcome"]["usage"]
    assert usage["verifier_computed"] % 7 == 0 and usage["verifier_computed"] > 0


def test_the_log_is_stored_once_and_cleared_with_the_decision() -> None:
    saver = InMemorySaver()
    agent = make_stages(world.make_engine(), strategy=BestFirst(max_expansions=12), solvable=False).compile(saver)
    written: list[int] = []
    for update in agent.stream(GO, THREAD, stream_mode="updates"):
        written += [sum(map(len, value.get("search") or ())) for value in update.values()]
    assert agent.get_state(THREAD).values["search"] == []
    assert max(written) < sum(written) / 4


async def test_a_staged_step_goes_on_in_another_process_after_a_stage(tmp_path: Path) -> None:
    saver = InMemorySaver()
    first = make_stages(world.make_engine(), trace=tmp_path / "a").compile(saver, interrupt_after=["verify"])
    await first.ainvoke(GO, THREAD)
    second = make_stages(world.make_engine(), trace=tmp_path / "a").compile(saver)
    await second.ainvoke(None, THREAD)
    await make_stages(world.make_engine(), trace=tmp_path / "b").compile().ainvoke(GO)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


@pytest.mark.parametrize("make", [make_verify_node, make_select_node])
def test_a_stage_without_a_search_says_what_is_missing(make: Any) -> None:
    engine = world.make_engine()
    node = make(engine, dialect=world.GrammarDialect(engine), strategy="greedy")
    with pytest.raises(SearchError, match="put an expand node before it"):
        node.invoke({**GO, "search": []})


class Folds(CheckVerifier):
    """A verifier that remembers the tree it was last asked about: the same object as long as the search lives on."""

    def __init__(self) -> None:
        super().__init__(lambda branch: round(scripted_judge(branch.text), 3))
        self.trees: list[ThoughtTree] = []

    async def __call__(self, branches: Any) -> Any:
        self.trees += [branch.tree for branch in branches[:1]]
        return await super().__call__(branches)


class TestTheSearchLivesOn:
    """A stage goes on with the search of the stage before it where it can, and the tree does not depend on it."""

    @pytest.mark.parametrize("mode", ["values", "custom", "messages"])  # the last two listen to the search
    @pytest.mark.parametrize("sync", [True, False])
    def test_in_one_process_no_log_is_folded_again(self, sync: bool, mode: Any) -> None:
        verifier = Folds()
        agent = make_stages(world.make_engine(), verifier=verifier, solvable=False).compile(InMemorySaver())

        async def run() -> None:
            async for _ in agent.astream(GO, THREAD, stream_mode=mode):
                pass

        list(agent.stream(GO, THREAD, stream_mode=mode)) if sync else asyncio.run(run())
        assert len(verifier.trees) > 2 and all(tree is verifier.trees[0] for tree in verifier.trees)

    async def test_where_it_was_interrupted_it_lives_on_in_its_thread(self, tmp_path: Path) -> None:
        """Where somebody listens who did not before, or in another thread, the log is read."""
        trees = []
        for way in ("plain", "heard", "interrupted", "heard later", "elsewhere"):
            verifier, trace = Folds(), tmp_path / way
            graph = make_stages(world.make_engine(), verifier=verifier, solvable=False, trace=trace)
            if way == "heard":
                async for _ in graph.compile().astream(GO, stream_mode="custom"):
                    pass
            elif way == "plain":
                await graph.compile().ainvoke(GO)
            else:
                agent = graph.compile(InMemorySaver(), interrupt_after=["expand", "verify", "select"])
                await agent.ainvoke(GO, THREAD)
                thread: Any = THREAD
                if way == "elsewhere":
                    thread = {"configurable": {"thread_id": "2"}}
                    state = await agent.aget_state(THREAD)
                    await agent.aupdate_state(thread, state.values, as_node="expand")
                while (await agent.aget_state(thread)).next:
                    mode: Any = "custom" if way == "heard later" and not len(verifier.trees) % 2 else "values"
                    async for _ in agent.astream(None, thread, stream_mode=mode):
                        pass
            assert (len(set(map(id, verifier.trees))) == 1) is (way != "heard later")
            trees.append(tree(trace))
        assert all(one == trees[0] for one in trees)

    async def test_forks_of_a_run_do_not_meet(self, tmp_path: Path) -> None:
        agent = make_stages(world.make_engine(), trace=tmp_path / "trace").compile(InMemorySaver())
        await agent.ainvoke(GO, THREAD)
        past = [state.config async for state in agent.aget_state_history(THREAD) if state.next == ("verify",)]
        await asyncio.gather(*(agent.ainvoke(None, config) for config in past))
        ends = [ThoughtTree(log.events).to_json() for log in read(tmp_path / "trace") if log.complete]
        assert len(ends) == 1 + len(past) and all(end == ends[0] for end in ends)

    async def test_a_budget_that_was_changed_between_two_stages_counts(self) -> None:
        engine = world.make_engine()
        agent = make_stages(engine, solvable=False).compile(InMemorySaver(), interrupt_after=["select"])
        await agent.ainvoke(GO, THREAD)
        spent = engine.served.calls
        limited = {"configurable": {"thread_id": "1", "tts": {"*": {"calls": spent + 4}}}}
        while (await agent.aget_state(THREAD)).next:
            result = await agent.ainvoke(None, limited)
        assert result["tts"]["outcome"]["limit"] == "calls" and engine.served.calls <= spent + 4

    async def test_a_search_that_was_left_when_other_messages_came_is_forgotten(self, tmp_path: Path) -> None:
        engine = table.make_engine()
        planner = create_planner(
            engine,
            dialect=CountdownDialect(engine),
            strategy=Beam(k=4, keep=3),
            verifier=countdown_verifier(engine),
            trace=tmp_path / "trace",
            staged=True,
        )
        left = planner.compile(InMemorySaver(), interrupt_after=["verify"])
        await left.ainvoke({"messages": [HumanMessage("Make 24 from 8 5 3 1")]}, THREAD)
        assert (await left.aget_state(THREAD)).values["search"]
        again = planner.compile(left.checkpointer)
        result = await again.ainvoke({"messages": [HumanMessage("Make 24 from 6 4 2 2")]}, THREAD)
        (log,) = read(tmp_path / "trace")
        assert "6 4 2 2" in ThoughtTree(log.events).root_text and result["search"] == []

    async def test_an_outage_in_every_round_is_raised_and_the_search_goes_on_later(self, tmp_path: Path) -> None:
        engine = world.make_engine(faults={place: Fault("refused") for place in range(4, 10)})
        strategy = BestFirst(k=2, max_expansions=12)
        agent = make_stages(engine, strategy=strategy, verifier=None, trace=tmp_path / "t").compile(InMemorySaver())
        tries = 0
        with pytest.raises(EngineUnavailable, match="3 requests in a row"):
            await agent.ainvoke(GO, THREAD)
        while (await agent.aget_state(THREAD)).next:
            tries += 1
            with contextlib.suppress(EngineUnavailable):
                await agent.ainvoke(None, THREAD)
        assert tries > 1 and tree(tmp_path / "t")


async def test_a_stage_in_which_something_arrives_is_not_idle() -> None:
    engine = world.make_engine(pace=0.15)
    policy = TimeoutPolicy(idle_timeout=0.6, refresh_on="heartbeat")
    graph: StateGraph[Any] = StateGraph(StagedState)
    settings: Any = {"dialect": world.GrammarDialect(engine, solvable=False), "verifier": None}
    settings["strategy"] = Beam(k=8, keep=1, depth=1)  # one stage of eight answers, each 0.15 s after the other
    for make, name in ((make_expand_node, "expand"), (make_verify_node, "verify"), (make_select_node, "select")):
        graph.add_node(name, make(engine, **settings), timeout=policy)
    graph.add_edge(START, "expand")
    graph.add_edge("expand", "verify")
    graph.add_edge("verify", "select")
    graph.add_conditional_edges("select", route_selected, {"expand": "expand", "act": END, END: END})
    begun = time.monotonic()
    result = await graph.compile().ainvoke(GO)
    assert result["tts"]["outcome"]["stop"] == "converged" and time.monotonic() - begun > 0.8


class TestNodesBetween:
    """Nodes of one's own between the stages."""

    @pytest.mark.parametrize("place", ["verify", "select"])
    @pytest.mark.parametrize(
        "strategy",
        [Greedy(), Beam(k=4, keep=3), BestFirst(k=3, max_expansions=12), BestOfN(n=4, width=2, unit="thought")],
        ids=lambda strategy: strategy.name,
    )
    async def test_branches_can_be_dropped_before_or_after_the_verdicts(
        self, strategy: Any, place: str, tmp_path: Path
    ) -> None:
        engine = world.make_engine()

        def cull(state: StagedState) -> dict[str, Any]:
            return drop([branch for branch in growable(state, engine.decode) if "a" in branch.thought.text], "has an a")

        graph = make_stages(engine, strategy=strategy, solvable=False, trace=tmp_path / "trace")
        graph.add_node("cull", cull)
        before = "expand" if place == "verify" else "verify"
        graph.edges.remove((before, place))
        graph.add_edge(before, "cull")
        graph.add_edge("cull", place)
        result = await graph.compile().ainvoke(GO, {"recursion_limit": 500})
        rows = tree(tmp_path / "trace")
        dropped = {row["id"] for row in rows if row.get("pruned") == "has an a"}
        assert result["tts"]["outcome"]["stop"] and not any(row["parent"] in dropped for row in rows)
        if strategy != Greedy():
            assert dropped
        if place == "verify":  # a branch that was dropped at once is never judged
            assert not any("score" in row for row in rows if row["id"] in dropped)


@tool
def note(text: str) -> str:
    """Write something down."""
    return f"noted {text}"


class TwoCalls:
    """Decides to call a tool twice, then says what came of it."""

    def __init__(self, engine: Any) -> None:
        self._task = make_task(engine, solvable=False)

    def request(self, messages: Any, last: Any) -> Any:
        noted = [message.text for message in messages if isinstance(message, ToolMessage)]
        return Answer(" and ".join(noted)) if noted else Request(self._task)

    def decide(self, thought: Any) -> AIMessage:
        calls = [{"name": "note", "args": {"text": f"{thought.text.strip()}{n}"}, "id": f"c{n}"} for n in (1, 2)]
        return AIMessage("", tool_calls=calls)


@pytest.mark.parametrize("staged", [True, False])
@pytest.mark.parametrize("sync", [True, False])
def test_several_tool_calls_in_one_decision_are_all_run_and_answered(staged: bool, sync: bool) -> None:
    engine = world.make_engine()
    agent = create_planning_agent(
        engine,
        dialect=TwoCalls(engine),
        tools=[note],
        strategy=Beam(k=2, keep=1, depth=2),
        verifier=make_verifier(engine),
        staged=staged,
    ).compile(checkpointer=InMemorySaver())
    result = agent.invoke(GO, THREAD) if sync else asyncio.run(agent.ainvoke(GO, THREAD))
    assert [message.type for message in result["messages"]] == ["human", "ai", "tool", "tool", "ai"]
    decision, one, two, answer = result["messages"][1:]
    assert [call["id"] for call in decision.tool_calls] == [one.tool_call_id, two.tool_call_id]
    assert answer.text == f"{one.text} and {two.text}" and one.text != two.text
    assert result["tts"]["step"] == 2


class TestPlanner:
    """`create_planner`: one step as a graph, also inside another."""

    @pytest.mark.parametrize("staged", [True, False])
    @pytest.mark.parametrize("way", ["sync", "async", "in a running loop"])
    def test_it_is_a_node_of_a_larger_graph(self, staged: bool, way: str) -> None:
        engine = world.make_engine()
        planner = create_planner(
            engine, dialect=world.GrammarDialect(engine), strategy=Beam(k=3, keep=2), budget=world.BUDGET, staged=staged
        )
        graph = StateGraph(PlanState)
        graph.add_node("research", planner.compile())
        graph.add_edge(START, "research")
        graph.add_edge("research", END)
        agent = graph.compile(checkpointer=InMemorySaver())

        async def blocking() -> Any:
            return agent.invoke(GO, THREAD)

        result = agent.invoke(GO, THREAD) if way == "sync" else None
        result = result or asyncio.run(blocking() if way == "in a running loop" else agent.ainvoke(GO, THREAD))
        assert [message.type for message in result["messages"]] == ["human", "ai"] and "search" not in result
        assert result["messages"][-1].response_metadata["tts"]["stop"] == result["tts"]["outcome"]["stop"]

    @pytest.mark.parametrize("calls", [1, 2, 4, 14])
    @pytest.mark.parametrize("staged", [True, False])
    def test_a_step_is_not_refused_by_what_it_has_reserved_itself(self, staged: bool, calls: int) -> None:
        engine = world.make_engine()
        shared = SharedBudget(Budget(calls=calls), name="team")
        planner = create_planner(
            engine,
            dialect=world.GrammarDialect(engine, solvable=False),
            strategy=BestFirst(k=2, max_expansions=50),
            verifier=make_verifier(engine),
            run_budget=shared,
            staged=staged,
            **({} if staged else {"barrier": True}),
        )
        result = planner.compile(InMemorySaver()).invoke(GO, {**THREAD, "recursion_limit": 400})
        assert result["tts"]["outcome"]["decision"] and result["tts"]["outcome"]["limit"] == "calls"
        assert engine.served.calls == result["tts_budgets"]["team"]["usage"]["calls"] <= calls

    @pytest.mark.filterwarnings("ignore:budgets are soft")
    def test_an_engine_without_seeds_works_in_stages(self) -> None:
        engine = ChatEngine(Teller(lambda messages, call: ("one", "two", "three")[call], max_tokens=64))

        class Chatting:
            def request(self, messages: Any, last: Any) -> Request:
                return Request(Task(Prefix(engine.encode("go")), thought=SHORT, answer=SHORT, max_depth=1))

            def decide(self, thought: Any) -> AIMessage:
                return AIMessage(thought.text)

        planner = create_planner(engine, dialect=Chatting(), strategy=BestOfN(n=3, width=3), staged=True)
        result = planner.compile().invoke(GO)
        assert result["messages"][-1].text in ("one", "two", "three") and result["tts"]["outcome"]["thoughts"] == 3


def test_grants_and_flushes_have_no_effect_on_stages() -> None:
    engine = world.make_engine()
    with pytest.raises(ConfigError, match="flush_events"):
        create_planner(engine, dialect=world.GrammarDialect(engine), staged=True, flush_events=3)


def test_a_log_that_is_none_is_refused() -> None:
    engine = world.make_engine()
    node = make_expand_node(engine, dialect=world.GrammarDialect(engine), strategy="greedy")
    for broken in ("no json", "{}", '[{"kind": "nonsense"}]'):
        with pytest.raises(LogError):
            node.invoke({**GO, "search": [broken]})


def test_a_review_belongs_to_the_fused_node() -> None:
    engine = world.make_engine()
    with pytest.raises(ConfigError, match="review"):
        create_planner(engine, dialect=world.GrammarDialect(engine), staged=True, review=2)
    agent = create_planner(engine, dialect=world.GrammarDialect(engine), strategy="greedy", review=1)
    result = agent.compile(InMemorySaver()).invoke(GO, THREAD)
    assert result["__interrupt__"][0].value["type"] == "tts.review"
