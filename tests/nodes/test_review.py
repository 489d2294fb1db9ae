"""A human looks at what a search found: choices, edits, more budget; nothing is sampled again."""

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, RetryPolicy

from tests.nodes.table import make_engine as make_player
from tests.nodes.world import make_engine, make_graph
from tools.calculator import calculator
from tts_agent import BestFirst, BestOfN, Budget, Outcome, ScriptedEngine, ThoughtTree, Usage
from tts_agent.engines import Fault
from tts_agent.errors import ConfigError
from tts_agent.events import Chosen, Deepened, Sampled
from tts_agent.nodes import PlanState, SharedBudget, TTSContext, create_planning_agent, make_plan_node, running_searches
from tts_agent.nodes.review import CHOSE, WROTE
from tts_agent.pocket import countdown_verifier
from tts_agent.pocket.dialect import CountdownDialect
from tts_agent.trace.recorder import Log, read

GO: Any = {"messages": [HumanMessage("go")]}
THREAD: Any = {"configurable": {"thread_id": "1"}}
SMALL = Budget(computed_tokens=600)


def agent_of(engine: ScriptedEngine, *, saver: Any = None, node: dict[str, Any] | None = None, **settings: Any) -> Any:
    chosen: dict[str, Any] = {"strategy": BestFirst(k=3, parallel=2), "budget": SMALL, "review": 3, "solvable": False}
    graph: StateGraph[Any] = StateGraph(PlanState, TTSContext)
    graph.add_node("plan", make_graph(engine, **(chosen | settings)).nodes["plan"].runnable, **(node or {}))
    graph.add_edge(START, "plan")
    graph.add_edge("plan", END)
    return graph.compile(checkpointer=saver or InMemorySaver())


def invoke(agent: Any, value: Any) -> Any:
    return agent.invoke(value, THREAD)


def ainvoke(agent: Any, value: Any) -> Any:
    return asyncio.run(agent.ainvoke(value, THREAD))


both = pytest.mark.parametrize("run", [invoke, ainvoke], ids=["sync", "async"])


def asked(result: Any) -> Any:
    (interrupt,) = result["__interrupt__"]
    assert json.loads(json.dumps(interrupt.value)) == interrupt.value
    return interrupt.value


def last(trace: Path) -> Log:
    (log,) = read(trace)
    return log


@both
def test_the_question_shows_candidates_verdicts_and_costs(run: Callable[..., Any]) -> None:
    engine = make_engine()
    question = asked(run(agent_of(engine), GO))
    assert (question["type"], question["node"], question["search"]) == ("tts.review", "plan", "plan/1")
    assert (question["stop"], question["limit"], question["solved"]) == ("budget", "computed_tokens", False)
    candidates = question["candidates"]
    assert len(candidates) == 3 and question["chosen"] == candidates[0]["choice"]
    for candidate in candidates:
        assert candidate["answer"].startswith(candidate["content"])
        assert 0 <= candidate["score"] <= 1 and candidate["thoughts"] >= 1
        assert candidate["usage"]["generated"] > 0
    assert question["usage"]["prompt_computed"] == engine.served.prompt_computed
    assert question["answers"] == {
        "choose": [candidate["choice"] for candidate in candidates],
        "edit": ["content", "tool_calls"],
        "more": ["computed_tokens"],
    }


@both
def test_a_choice_decides_and_nothing_is_sampled_again(run: Callable[..., Any], tmp_path: Path) -> None:
    engine, trace = make_engine(), tmp_path / "trace.jsonl"
    agent = agent_of(engine, trace=trace)
    question = asked(run(agent, GO))
    requests = len(engine.requests)
    second = question["candidates"][1]
    result = run(agent, Command(resume={"choose": second["choice"]}))
    assert len(engine.requests) == requests
    assert result["messages"][-1].text == second["content"]
    outcome = result["tts"]["outcome"]
    assert outcome["decision"] == second["content"] and CHOSE in outcome["cut"]
    log = last(trace)
    assert [event.reason for event in log.events if isinstance(event, Chosen)] == ["", CHOSE]
    chosen = ThoughtTree(log.events).path(log.events[-1].thought)  # type: ignore[union-attr,arg-type]
    assert chosen[0].id == second["choice"] and "".join(step.text for step in chosen) == second["answer"]


@both
def test_more_budget_goes_deeper_and_asks_again(run: Callable[..., Any], tmp_path: Path) -> None:
    engine, trace = make_engine(), tmp_path / "trace.jsonl"
    agent = agent_of(engine, trace=trace)
    first = asked(run(agent, GO))
    for turn in (1, 2):
        question = asked(run(agent, Command(resume={"more": {"computed_tokens": 500}})))
        assert question["usage"]["generated"] > first["usage"]["generated"]
        assert engine.served.computed <= 600 + 500 * turn
    result = run(agent, Command(resume={"choose": question["chosen"]}))
    assert result["messages"][-1].text == question["candidates"][0]["content"]
    log = last(trace)
    sampled = [event.thought.id for event in log.events if isinstance(event, Sampled)]
    assert len(sampled) == len(set(sampled))
    assert len([event for event in log.events if isinstance(event, Deepened)]) == 2
    totals = result["tts"]["totals"]
    assert totals["usage"]["prompt_computed"] == engine.served.prompt_computed and not totals["lost"]


def test_a_search_that_was_deepened_is_the_one_that_had_the_budget_at_once(tmp_path: Path) -> None:
    def run(name: str, budget: Budget, answers: list[Any]) -> list[dict[str, object]]:
        agent = agent_of(make_engine(), budget=budget, trace=tmp_path / name)
        agent.invoke(GO, THREAD)
        for answer in answers:
            agent.invoke(Command(resume=answer), THREAD)
        return ThoughtTree(last(tmp_path / name).events).to_json()

    deepened = run("deepened", Budget(calls=20, commit_tokens=0), [{"more": {"calls": 40}}])
    at_once = run("at once", Budget(calls=60, commit_tokens=0), [])
    # Where the first limit came into sight a request was trimmed; up to there the trees are the same.
    same = [mine == other for mine, other in zip(deepened, at_once, strict=False)]
    assert sum(same) >= 10 and len(deepened) > 20


@both
def test_a_reviewer_writes_the_decision(run: Callable[..., Any]) -> None:
    engine = make_engine()
    agent = agent_of(engine)
    run(agent, GO)
    requests = len(engine.requests)
    calls = [{"name": "lookup", "args": {"key": "a"}}, {"name": "lookup", "args": {"key": "b"}}]
    result = run(agent, Command(resume={"edit": {"content": "my own", "tool_calls": calls}}))
    message = result["messages"][-1]
    assert isinstance(message, AIMessage) and message.text == "my own"
    assert [(call["name"], call["args"]) for call in message.tool_calls] == [
        ("lookup", {"key": "a"}),
        ("lookup", {"key": "b"}),
    ]
    assert len({call["id"] for call in message.tool_calls}) == 2
    assert len(engine.requests) == requests
    assert result["tts"]["outcome"]["decision"] == "my own" and WROTE in result["tts"]["outcome"]["cut"]


BAD = [
    "3",
    {"choose": 10**6},
    {"choose": True},
    {"choose": "1"},
    {"choose": [1]},
    {"pick": 1},
    {"choose": 1, "more": {"computed_tokens": 5}},
    {"more": {"calls": 5}},
    {"more": {"computed_tokens": -5}},
    {"more": {"computed_tokens": None}},
    {"more": {"tokens": 5}},
    {"more": 5},
    {"edit": "text"},
    {"edit": {}},
    {"edit": {"content": ""}},
    {"edit": {"content": 5}},
    {"edit": {"content": "a", "role": "ai"}},
    {"edit": {"tool_calls": [{"name": "lookup"}]}},
    {"edit": {"tool_calls": [{"name": 5, "args": {}}]}},
    {"edit": {"tool_calls": "lookup"}},
]


@both
def test_a_bad_answer_is_told_the_choices_and_asked_again(run: Callable[..., Any]) -> None:
    engine = make_engine()
    agent = agent_of(engine)
    question = asked(run(agent, GO))
    requests = len(engine.requests)
    for answer in BAD:
        again = asked(run(agent, Command(resume=answer)))
        error = again.pop("error")
        assert repr(answer) in error, error
        for choice in question["answers"]["choose"]:
            assert str(choice) in error
        assert "'edit'" in error and "'more'" in error and "'computed_tokens'" in error
        assert again == question
    result = run(agent, Command(resume={"choose": question["chosen"]}))
    assert result["messages"][-1].text == question["candidates"][0]["content"]
    assert len(engine.requests) == requests


def test_each_process_of_a_long_review_begins_anew(tmp_path: Path) -> None:
    """Every answer is given to another graph with another engine: all they share is the checkpoint."""
    engines: list[ScriptedEngine] = []

    def run(value: Any) -> Any:
        engines.append(make_engine())
        with SqliteSaver.from_conn_string(str(tmp_path / "db")) as saver:
            return agent_of(engines[-1], saver=saver, trace=tmp_path / "trace.jsonl").invoke(value, THREAD)

    run(GO)
    run(Command(resume={"more": {"computed_tokens": 300}}))
    run(Command(resume={"choose": -1}))
    question = asked(run(Command(resume={"more": {"computed_tokens": 300}})))
    result = run(Command(resume={"choose": question["candidates"][2]["choice"]}))
    assert [bool(engine.requests) for engine in engines] == [True, True, False, True, False]
    totals = result["tts"]["totals"]
    assert totals["usage"]["prompt_computed"] == sum(engine.served.prompt_computed for engine in engines)
    assert not totals["lost"]
    assert result["messages"][-1].text == question["candidates"][2]["content"]
    log = last(tmp_path / "trace.jsonl")
    assert log.complete and len([event for event in log.events if isinstance(event, Deepened)]) == 2


def test_an_outage_after_more_budget_does_not_ask_or_deepen_twice(tmp_path: Path) -> None:
    """A retry consumes the answers from the first again; what they did is in the log already."""
    probe = make_engine()
    agent_of(probe).invoke(GO, THREAD)
    begins = len(probe.requests) + 8
    engine = make_engine(faults={place: Fault("refused") for place in range(begins, begins + 3)})
    retry = RetryPolicy(initial_interval=0.01, max_attempts=3)
    agent = agent_of(engine, node={"retry_policy": retry}, trace=tmp_path / "trace.jsonl", flush_events=6)
    agent.invoke(GO, THREAD)
    asked(agent.invoke(Command(resume={"choose": -1}), THREAD))
    question = asked(agent.invoke(Command(resume={"more": {"computed_tokens": 900}}), THREAD))
    assert "error" not in question
    agent.invoke(Command(resume={"edit": {"content": "so"}}), THREAD)
    log = last(tmp_path / "trace.jsonl")
    assert [event.more for event in log.events if isinstance(event, Deepened)] == [{"computed_tokens": 900}]
    assert engine.served.computed <= 1500


def test_a_function_says_whether_there_is_something_to_review() -> None:
    def unsolved(outcome: Outcome) -> bool:
        return not outcome.solved

    solved = agent_of(make_engine(), strategy=BestFirst(k=8), solvable=True, budget=Budget(calls=2000), review=unsolved)
    result = solved.invoke(GO, THREAD)
    assert result["tts"]["outcome"]["solved"] and "__interrupt__" not in result
    question = asked(agent_of(make_engine(), review=unsolved).invoke(GO, THREAD))
    assert len(question["candidates"]) == 4
    question = asked(agent_of(make_engine(), review=lambda outcome: 2).invoke(GO, THREAD))
    assert len(question["candidates"]) == 2


@pytest.mark.parametrize("said", [None, -1, "all", 2.5])
@both
def test_a_function_that_says_no_number_is_refused_and_nothing_is_lost(run: Callable[..., Any], said: Any) -> None:
    engine, saver = make_engine(), InMemorySaver()
    with pytest.raises(ConfigError, match=rf"returned {said!r}; it must return a number of candidates, True for 4"):
        run(agent_of(engine, saver=saver, review=lambda outcome: said), GO)
    asked(run(agent_of(engine, saver=saver, review=lambda outcome: True), None))
    assert engine.served.computed <= 600


def test_a_search_that_has_its_answer_cannot_be_deepened() -> None:
    agent = agent_of(make_engine(), strategy=BestFirst(k=3, max_expansions=4), budget=Budget(calls=500))
    question = asked(agent.invoke(GO, THREAD))
    assert question["stop"] == "converged" and set(question["answers"]) == {"choose", "edit"}
    error = asked(agent.invoke(Command(resume={"more": {"calls": 4}}), THREAD))["error"]
    assert "no object with one of the keys choose, edit" in error


def test_whole_answers_are_candidates_of_their_own() -> None:
    agent = agent_of(make_engine(), strategy=BestOfN(n=5), budget=Budget(calls=500), verifier=None)
    question = asked(agent.invoke(GO, THREAD))
    assert len(question["candidates"]) == 3
    assert len({candidate["answer"] for candidate in question["candidates"]}) == 3


@pytest.mark.parametrize("review", [0, -1, True, "all", 2.5])
def test_a_wrong_setting_is_refused(review: Any) -> None:
    with pytest.raises(ConfigError, match="must be a number of candidates"):
        make_graph(make_engine(), review=review)


@both
def test_a_review_needs_a_checkpointer(run: Callable[..., Any]) -> None:
    engine = make_engine()
    graph = make_graph(engine, review=2)
    with pytest.raises(ConfigError, match="compile the graph with a checkpointer"):
        run(graph.compile(), GO)
    assert not engine.requests


def test_an_agent_goes_on_from_what_a_reviewer_wrote() -> None:
    engine = make_player()
    plan = make_plan_node(
        engine,
        dialect=CountdownDialect(engine),
        strategy=BestFirst(k=4),
        verifier=countdown_verifier(engine),
        budget=Budget(calls=40),
        review=lambda outcome: 3,
    )
    graph = create_planning_agent(
        engine, dialect=CountdownDialect(engine), tools=[calculator], strategy=BestFirst(k=4), budget=Budget(calls=40)
    )
    graph.nodes["plan"].runnable = plan  # type: ignore[attr-defined]
    agent: Any = graph.compile(checkpointer=InMemorySaver())
    result = agent.invoke({"messages": [HumanMessage("Make 24 from 8 5 3 1")]}, THREAD)
    asked(result)
    mine = {"tool_calls": [{"name": "calculator", "args": {"expression": "8*3"}}]}
    result = agent.invoke(Command(resume={"edit": mine}), THREAD)
    question = asked(result)  # of the next step, which reads what was written as history
    assert question["search"] == "plan/2"
    assert [message.text for message in result["messages"] if message.type == "tool"] == ["24"]
    for candidate in question["candidates"]:
        expression = candidate["tool_calls"][0]["args"]["expression"]
        assert set(re.findall(r"\d+", expression)) <= {"24", "5", "1"}


@both
def test_a_run_that_has_more_by_now_goes_on(run: Callable[..., Any]) -> None:
    """The limit was the run's: the context of the answer raises it."""
    engine = make_engine()
    agent = agent_of(engine, budget=None, run_budget=Budget(computed_tokens=600))
    question = asked(run(agent, GO))
    assert question["answers"]["more"] == []
    asked(run(agent, Command(resume={"more": {}})))
    assert engine.served.computed <= 600  # what had been held back for the decision is all there was
    more = Command(resume={"more": {}})
    context: Any = {"tts": {"run": {"computed_tokens": 1200}}}
    if run is invoke:
        result = agent.invoke(more, THREAD, context=context)
    else:
        result = asyncio.run(agent.ainvoke(more, THREAD, context=context))
    assert asked(result)["usage"]["generated"] > question["usage"]["generated"]
    assert 600 < engine.served.computed <= 1200


def test_a_stopped_search_goes_on_when_the_reviewer_says_so() -> None:
    engine = make_engine(pace=0.005)
    agent = agent_of(engine, budget=Budget(calls=500), strategy=BestFirst(k=3, max_expansions=30))

    def stop() -> None:
        while not any(handle.usage.calls > 2 for handle in running_searches(thread="1")):
            time.sleep(0.002)
        running_searches(thread="1")[0].stop()

    thread = threading.Thread(target=stop)
    thread.start()
    question = asked(agent.invoke(GO, THREAD))
    thread.join()
    assert (question["stop"], question["cut"]) == ("cancelled", "stopped from outside")
    again = asked(agent.invoke(Command(resume={"more": {}}), THREAD))
    assert again["stop"] == "converged" and again["usage"]["calls"] > question["usage"]["calls"]


@both
def test_a_shared_budget_knows_what_a_reviewed_search_spent_once(run: Callable[..., Any]) -> None:
    engine = make_engine()
    shared = SharedBudget(Budget(computed_tokens=2000), name="all")
    agent = agent_of(engine, run_budget=shared)
    question = asked(run(agent, GO))
    asked(run(agent, Command(resume={"choose": -1})))
    question = asked(run(agent, Command(resume={"more": {"computed_tokens": 500}})))
    result = run(agent, Command(resume={"choose": question["chosen"]}))
    spent = Usage.from_json(result["tts_budgets"]["all"]["usage"])
    assert spent.computed == engine.served.computed <= 1100
