"""The planning step as nodes of its own: expand, verify, select."""

from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph

from tests.nodes import table, world
from tests.nodes.test_plan import GO, THREAD, tree
from tests.scripts import judge as scripted_judge
from tools.calculator import calculator
from tts_agent import Beam, BestFirst, Budget, Greedy, ThoughtTree, Usage, Verdict
from tts_agent.errors import SearchError
from tts_agent.nodes import (
    OutsideVerifier,
    StagedState,
    create_planning_agent,
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


def make_stages(engine: Any, *, verify: Any = None, trace: Path | None = None, **settings: Any) -> Any:
    """A staged step in the scripted grammar; `verify` replaces the verify node."""
    solvable = settings.pop("solvable", True)
    chosen: dict[str, Any] = {
        "dialect": world.GrammarDialect(engine, solvable=solvable),
        "strategy": Beam(k=4, keep=3),
        "verifier": world.make_verifier(engine),
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


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("strategy", [Beam(k=4, keep=3), Beam(k=2, keep=1), Greedy()], ids=repr)
async def test_the_tree_is_that_of_the_fused_node_with_a_barrier(strategy: Any, seed: int, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"strategy": strategy, "seed": seed, "solvable": seed % 2 == 0, "barrier": True}
    staged = make_stages(world.make_engine(), trace=tmp_path / "staged", **settings).compile()
    fused = world.make_graph(world.make_engine(), trace=tmp_path / "fused", **settings).compile()
    done, whole = await staged.ainvoke(GO), await fused.ainvoke(GO)
    assert tree(tmp_path / "staged") == tree(tmp_path / "fused")
    outcomes = [result["tts"]["outcome"] for result in (done, whole)]
    assert outcomes[0] == outcomes[1]
    assert done["search"] == []


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
        written += [len(value.get("search") or ()) for value in update.values()]
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
