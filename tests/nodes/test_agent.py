"""An agent that plans by search, acts, observes, and plans again."""

import json
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage, ToolMessage
from langchain_core.tools import ToolException, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphRecursionError

from tests.nodes.table import CountdownEngine, make_engine, on_table, player
from tools.calculator import calculator
from tts_agent import Beam, BestOfN, Budget, Prices, Thought
from tts_agent.errors import BudgetError, ConfigError, LogError
from tts_agent.events import Carried, Sampled
from tts_agent.nodes import create_planning_agent, route
from tts_agent.pocket import countdown_verifier
from tts_agent.pocket.countdown import Puzzle, prompt_text
from tts_agent.pocket.dialect import CountdownDialect
from tts_agent.thought import ROOT
from tts_agent.trace.recorder import read

PUZZLE = {"messages": [HumanMessage("Make 24 from 8 5 3 1")]}


def make_agent(engine: CountdownEngine, **settings: Any) -> Any:
    chosen: dict[str, Any] = {
        "tools": [calculator],
        "verifier": countdown_verifier(engine),
        "run_budget": Budget(computed_tokens=4000),
    }
    return create_planning_agent(engine, dialect=CountdownDialect(engine), **(chosen | settings))


def steps(agent: Any, start: dict[str, Any] = PUZZLE, **config: Any) -> list[tuple[str, dict[str, Any]]]:
    updates = agent.stream(start, {"recursion_limit": 40, **config}, stream_mode="updates")
    return [item for update in updates for item in update.items()]


def test_it_plans_to_the_end_acts_step_by_step_and_answers_with_the_whole_solution() -> None:
    done = steps(make_agent(make_engine()).compile())
    assert [node for node, _ in done] == ["plan", "act"] * 3 + ["plan"]
    decisions = [update["messages"][0] for node, update in done if node == "plan"]
    assert all(len(message.tool_calls) == 1 for message in decisions[:-1])
    assert decisions[-1].tool_calls == []
    expression, rest = decisions[-1].text.split(" = ")
    assert eval(expression) == 24 and rest == "24. Solved."
    assert done[-1][1]["tts"]["outcome"]["solved"] is True


def test_what_was_foreseen_is_carried_over_and_not_paid_twice(tmp_path: Path) -> None:
    engine = make_engine()
    done = steps(make_agent(engine, trace=tmp_path / "trace.jsonl").compile())
    plans = [update["tts"] for node, update in done if node == "plan"]
    assert [tts["carried"] for tts in plans] == [False, True, True, False]
    assert [tts["step"] for tts in plans] == [1, 2, 3, 4]
    assert plans[0]["outcome"]["solved"]
    assert [tts["outcome"]["usage"] for tts in plans[1:]] == [{}, {}, {}]
    assert plans[-1]["totals"] == plans[0]["totals"]
    first, second, third = read(tmp_path / "trace.jsonl")
    assert second.opened.root.starts_with(first.opened.root) and third.opened.root.starts_with(second.opened.root)
    sampled = {event.thought.ids: event.thought for event in first.events if isinstance(event, Sampled)}
    carried = [event.thought for event in second.events if isinstance(event, Carried)]
    assert carried and all(sampled[thought.ids].text == thought.text for thought in carried)
    assert engine.served.computed == plans[-1]["totals"]["usage"]["prompt_computed"] + sum(
        tts["outcome"]["usage"].get("decoded", 0) for tts in plans
    )


def test_another_result_than_foreseen_is_said_and_planned_for_anew(tmp_path: Path) -> None:
    @tool("calculator")
    def off_by_one(expression: str) -> str:
        """Calculates, and is wrong by one."""
        return str(eval(expression) + 1)

    done = steps(make_agent(make_engine(), tools=[off_by_one], trace=tmp_path / "t.jsonl").compile())
    plans = [update["tts"] for node, update in done if node == "plan"]
    assert not any(tts["carried"] for tts in plans)
    first, second = read(tmp_path / "t.jsonl")[:2]
    operation = next(update["messages"][0] for _, update in done).tool_calls[0]["args"]["expression"]
    left = [8, 5, 3, 1]
    for operand in map(int, operation.translate(str.maketrans("+-*/", "    ")).split()):
        left.remove(operand)
    expected = Puzzle((int(eval(operation)) + 1, *left), 24)
    assert second.opened.root_text == prompt_text(expected)


def test_an_impossible_puzzle_ends_without_a_decision() -> None:
    agent = make_agent(make_engine(), budget=Budget(calls=30), run_budget=None).compile()
    done = steps(agent, {"messages": [HumanMessage("Make 100 from 1 1 2")]})
    assert done[-1][1]["messages"] == []
    assert done[-1][1]["tts"]["outcome"] | {"usage": 0, "thoughts": 0} == {
        "decision": None,
        "stop": "budget",
        "limit": "calls",
        "solved": False,
        "usage": 0,
        "lost": {},
        "excess": {},
        "thoughts": 0,
        "cut": "stopped by the calls limit",
    }


def test_a_wrong_end_is_said_to_be_wrong() -> None:
    @tool("calculator")
    def nine(expression: str) -> str:
        """Says nine."""
        return "9"

    done = steps(make_agent(make_engine(), tools=[nine]).compile(), {"messages": [HumanMessage("Make 6 from 3 2")]})
    final = done[-1][1]
    assert final["messages"][0].text == "3*2 = 9, not 6. Not solved."
    assert final["tts"]["outcome"]["solved"] is False


def test_the_message_tells_how_it_was_found() -> None:
    note = steps(make_agent(make_engine()).compile())[0][1]["messages"][0].response_metadata["tts"]
    assert note["stop"] == "solved" and note["score"] == 0.9 and note["usage"]["calls"] > 0
    assert note["search"] == "plan/1"


def test_the_run_budget_holds_over_all_steps_and_running_out_is_a_result() -> None:
    engine = make_engine(script=lambda prefix, seed: "1+1=3 left: 3\n" if seed % 5 else player(prefix, seed))
    agent = make_agent(engine, run_budget=Budget(computed_tokens=400)).compile()
    done = steps(agent, {"messages": [HumanMessage("Make 99 from 3 7 11 13 2")]})
    assert engine.served.computed <= 400
    outcome = done[-1][1]["tts"]["outcome"]
    assert outcome["decision"] is None and outcome["stop"] == "budget" and outcome["limit"] == "computed_tokens"
    assert done[-1][1]["messages"] == []


def test_a_budget_too_small_for_the_first_decision_is_an_error() -> None:
    with pytest.raises(BudgetError, match="cannot pay for the prompt"):
        steps(make_agent(make_engine(), run_budget=Budget(computed_tokens=10)).compile())


def test_dollars_are_limited_over_the_run() -> None:
    engine = make_engine()
    prices = Prices(prompt=1.0, generated=10.0)
    agent = make_agent(engine, run_budget=Budget(dollars=0.003), budget=Budget(calls=50), prices=prices).compile()
    totals = steps(agent)[-1][1]["tts"]["totals"]["usage"]
    assert 0 < totals["dollars"] <= 0.003
    assert totals["dollars"] == pytest.approx(prices.dollars(engine.served), rel=1e-6)


def test_whole_answers_as_thoughts_decide_one_operation_at_a_time() -> None:
    engine = make_engine(end_ids=(0,), script=_answers)
    strategy = BestOfN(n=200, width=20, unit="answer")
    agent = make_agent(engine, strategy=strategy, run_budget=None).compile()
    done = steps(agent, {"messages": [HumanMessage("Make 43 from 8 5 3")]})
    assert not any(update["tts"]["carried"] for node, update in done if node == "plan")
    assert done[-1][1]["messages"][0].text.endswith("43. Solved.")


def _answers(prefix: str, seed: int) -> str:
    text = ""
    while len(on_table(prefix + text)) > 1:
        line = player(prefix + text, seed)
        if "1+1=3" in line:
            return text + line + "<eos>"
        text += line
        seed += 1
    return text + "<eos>"


def test_several_puzzles_in_one_thread_are_runs_of_their_own() -> None:
    agent = make_agent(make_engine()).compile(checkpointer=InMemorySaver())
    thread = {"configurable": {"thread_id": "1"}}
    first = steps(agent, **thread)[-1][1]["tts"]["totals"]
    second = steps(agent, {"messages": [HumanMessage("nums: 2 3 4 target: 20")]}, **thread)
    assert second[0][1]["tts"]["step"] == 1
    assert second[-1][1]["tts"]["totals"] != first
    assert second[-1][1]["messages"][0].text.endswith("= 20. Solved.")


def test_a_history_changed_by_others_voids_what_was_carried() -> None:
    agent = make_agent(make_engine()).compile(checkpointer=InMemorySaver(), interrupt_after=["act"])
    thread = {"configurable": {"thread_id": "1"}}
    agent.invoke(PUZZLE, thread)
    decision = next(m for m in agent.get_state(thread).values["messages"] if isinstance(m, AIMessage))
    answer = agent.get_state(thread).values["messages"][-1]
    assert isinstance(answer, ToolMessage)
    used = agent.get_state(thread).values["tts"]["totals"]["usage"]["calls"]
    agent.update_state(thread, {"messages": [RemoveMessage(decision.id), RemoveMessage(answer.id)]})
    update = steps(agent, None, **thread)[0][1]  # type: ignore[arg-type]
    assert update["tts"]["carried"] is False
    assert update["tts"]["step"] == 2 and update["tts"]["totals"]["usage"]["calls"] > used  # the run goes on


def test_the_state_holds_one_steps_subtree_and_plain_json() -> None:
    agent = make_agent(
        make_engine(), strategy=Beam(k=6, keep=6), budget=Budget(computed_tokens=20_000), run_budget=None
    )
    for node, update in steps(agent.compile()):
        if node == "plan":
            assert json.loads(json.dumps(update["tts"])) == update["tts"]
            assert len(update["tts"].get("subtree", ())) <= update["tts"]["outcome"]["thoughts"]


def test_a_state_of_another_version_is_refused() -> None:
    agent = make_agent(make_engine()).compile()
    with pytest.raises(LogError, match="version 99"):
        agent.invoke({**PUZZLE, "tts": {"version": 99}})


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"run_budget": None}, "goes on until a budget stops it"),
        ({"stratgy": "beam"}, "unknown settings .'stratgy'.; known: strategy, verifier"),
        ({"strategy": "dfs"}, "unknown strategy 'dfs'; known: beam"),
        ({"grant": 0.0}, "grant=0.0"),
        ({"flush_events": 0}, "flush_events=0"),
        ({"trace": 5}, "trace=5"),
        ({"trace": 5, "staged": True}, "trace=5"),
        ({"staged": True, "flush_events": 5}, "'flush_events'. have no effect on a staged agent"),
        ({"tools": []}, "pass tools="),
        ({"run_budget": Budget(dollars=1.0)}, "needs prices"),
    ],
)
def test_settings_that_cannot_work_are_refused_when_the_agent_is_made(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make_agent(make_engine(), **settings)


def test_routing_follows_the_newest_message() -> None:
    decision = CountdownDialect(make_engine()).decide(Thought(1, ROOT, 0, (), "8*3=24 left: 24 5 1\n"))
    assert route({"messages": [decision]}) == "act"
    assert route({"messages": [HumanMessage("x"), AIMessage("done")]}) == "__end__"
    assert route({"messages": [decision, ToolMessage("24", tool_call_id="x")]}) == "__end__"
    assert route({"messages": []}) == "__end__"


def test_a_tool_that_refuses_answers_and_the_planner_goes_on() -> None:
    @tool("calculator")
    def broken(expression: str) -> str:
        """Never works."""
        raise ToolException("out of order")

    agent = make_agent(make_engine(), tools=[broken]).compile()
    updates = agent.stream(PUZZLE, {"recursion_limit": 6}, stream_mode="updates")
    seen: list[tuple[str, dict[str, Any]]] = []
    with pytest.raises(GraphRecursionError):
        for update in updates:
            seen += update.items()
    answers = [update["messages"][0] for node, update in seen if node == "act"]
    assert [(answer.status, "out of order" in answer.text) for answer in answers] == [("error", True)] * 3
    assert not any(update["tts"]["carried"] for node, update in seen if node == "plan")
