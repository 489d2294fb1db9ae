"""What a search tells on the streams of LangGraph while it runs."""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, RetryPolicy, Send, TimeoutPolicy

from tests.engines.test_chat import StreamingModel, says
from tests.nodes.chatting import ChatDialect
from tests.nodes.screen import Screen
from tests.nodes.test_plan import GO, OUTAGE, THREAD, tree
from tests.nodes.test_stages import make_stages
from tests.nodes.world import STRATEGIES, make_engine, make_graph
from tts_agent import BestOfN, Budget, Greedy, Prefix, Sampling, Verdict
from tts_agent.engines.base import Capabilities, Tell
from tts_agent.engines.chat import ChatEngine
from tts_agent.errors import EngineUnavailable, LogError
from tts_agent.nodes import (
    OutsideVerifier,
    PlanState,
    drop,
    growable,
    judge,
    make_plan_node,
    running_searches,
    unjudged,
)
from tts_agent.nodes.observed import ObservedSearch
from tts_agent.nodes.progress import Progress
from tts_agent.nodes.transformer import TTSTransformer
from tts_agent.trace.recorder import read
from tts_agent.usage import Usage, total_usage

SEARCHES = {**STRATEGIES, "greedy": Greedy(), "best_of_n": BestOfN(n=6, width=3)}


def collect(graph: Any, sync: bool, start: Any = GO, mode: Any = "custom", **options: Any) -> list[Any]:
    """What a run streams, to its end or to an outage."""
    told: list[Any] = []

    async def drive() -> None:
        async for data in graph.astream(start, THREAD, stream_mode=mode, **options):
            told.append(data)

    try:
        if sync:
            told.extend(graph.stream(start, THREAD, stream_mode=mode, **options))
        else:
            asyncio.run(drive())
    except EngineUnavailable:
        pass
    return told


@given(
    name=st.sampled_from(sorted(SEARCHES)),
    seed=st.integers(0, 50),
    sync=st.booleans(),
    staged=st.booleans(),
    solvable=st.booleans(),
    judged=st.booleans(),
    generated=st.sampled_from([60, 1500]),
)
@settings(max_examples=12, deadline=None)
def test_what_is_told_is_the_search_whole_and_once(
    name: str, seed: int, sync: bool, staged: bool, solvable: bool, judged: bool, generated: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace"
        options: dict[str, Any] = {"strategy": SEARCHES[name], "seed": seed, "solvable": solvable, "trace": trace}
        options |= {"stream_candidates": True, "budget": Budget(generated_tokens=generated)}
        options |= {} if judged else {"verifier": None}
        graph = (make_stages if staged else make_graph)(make_engine(), **options)
        told = collect(graph.compile(), sync)
        assert json.loads(json.dumps(told)) == told
        screen, log = Screen(told), read(trace)[-1]
        assert screen.rows() == tree(trace)
    for kind in ("tts.opened", "tts.chosen"):
        assert [data["type"] for data in told].count(kind) == 1
    assert not any("replayed" in data for data in told)
    places = [data["at"] for data in told]
    assert places == sorted(places) and places[-1] == len(log.events) - 1
    assert {data["search"] for data in told} == {"plan/1"} and len({data["task"] for data in told}) >= 1
    check_account(told)
    check_best(told)


def check_account(told: list[dict[str, Any]]) -> None:
    """The account follows from what was told."""
    own = ("tts.thought", "tts.verdict")
    used = total_usage(Usage.from_json(data["usage"]) for data in told if data["type"] in own)
    cancelled = [Usage.from_json(data["usage"]) for data in told if data.get("change") == "cancelled"]
    spent = Usage.from_json(told[-1]["usage"])
    assert (used + total_usage(cancelled))._replace(seconds=0.0) == spent._replace(seconds=0.0)
    account = [data for data in told if data["type"] == "tts.budget"]
    assert account[-1]["reserved"] == {} and Usage.from_json(account[-1]["spent"]).total == spent.total
    assert {data["change"] for data in account} <= {"reserved", "settled", "cancelled", "lost"}


def check_best(told: list[dict[str, Any]]) -> None:
    """The best answer only improves, and the last one is taken."""
    order = ("open", "complete", "solved")
    best = [data for data in told if data["type"] == "tts.best"]
    places = [(order.index(data["status"]), -1.0 if data["value"] is None else data["value"]) for data in best]
    assert places == sorted(places)
    chosen = told[-1]
    assert chosen["type"] == "tts.chosen"
    if chosen["branch"] is None:
        assert not best
    elif not chosen["committed"]:
        assert (best[-1]["branch"], best[-1]["text"]) == (chosen["branch"], chosen["text"])


@pytest.mark.parametrize("sync", [True, False])
def test_what_candidates_say_is_told_when_asked(sync: bool) -> None:
    quiet = collect(make_graph(make_engine()).compile(), sync)
    loud = collect(make_graph(make_engine(), stream_candidates=True).compile(), sync)
    assert not any("text" in data for data in quiet if data["type"] == "tts.thought")
    assert all(data["text"] for data in loud if data["type"] == "tts.thought")
    assert [data["type"] for data in quiet] == [data["type"] for data in loud]
    assert any(data["text"] for data in quiet if data["type"] == "tts.best")


@pytest.mark.parametrize("candidates", [True, False])
@pytest.mark.parametrize("sync", [True, False])
def test_messages_show_the_decision_and_no_candidate(sync: bool, candidates: bool) -> None:
    graph = make_graph(make_engine(), stream_candidates=candidates).compile()
    (message,) = (message for message, _ in collect(graph, sync, mode="messages"))
    assert isinstance(message, AIMessage) and message.response_metadata["tts"]["stop"]


class Telling:
    """The scripted engine, which tells its tokens one by one."""

    def __init__(self) -> None:
        self._engine = make_engine()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    @property
    def capabilities(self) -> Capabilities:
        mine = self._engine.capabilities
        return Capabilities(seeds=True, label_logprobs=True, virtual_time=mine.virtual_time, tells=True)

    def sample(
        self,
        prefix: Prefix,
        sampling: Sampling,
        *,
        seeds: Sequence[int],
        at: float = 0.0,
        tell: Tell | None = None,
    ) -> Any:
        return _TellingStream(self._engine.sample(prefix, sampling, seeds=seeds, at=at), tell)


class _TellingStream:
    def __init__(self, stream: Any, tell: Tell | None) -> None:
        self._stream, self._tell = stream, tell
        self.abort = stream.abort

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        completion = await self._stream.__anext__()
        if self._tell is not None:
            for size in range(1, len(completion.ids) + 1):
                self._tell(completion.index, completion.ids[:size])
        return completion


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("asked", [True, False])
def test_tokens_of_candidates_come_when_asked_and_add_up_to_thoughts(asked: bool, traced: bool) -> None:
    handlers = [RunCollectorCallbackHandler()] if traced else []
    graph = make_graph(Telling(), stream_candidates=asked).compile()  # type: ignore[arg-type]
    told = list(graph.stream(GO, {"callbacks": handlers}, stream_mode="custom"))
    said: dict[int, str] = {}
    for data in told:
        if data["type"] == "tts.tokens":
            said[data["branch"]] = said.get(data["branch"], "") + data["text"]
    thoughts = {data["branch"]: data.get("text") for data in told if data["type"] == "tts.thought"}
    assert asked == bool(said)
    assert all(said[branch] == text for branch, text in thoughts.items() if asked)


@pytest.mark.parametrize("sync", [True, False])
def test_a_chat_model_is_heard_while_it_speaks(sync: bool) -> None:
    model = StreamingModel(reply=says("I would add.", "I would take away."), calls=[])
    engine = ChatEngine(model)
    node = make_plan_node(engine, dialect=ChatDialect(engine), strategy=BestOfN(n=2, width=2), stream_candidates=True)
    graph = StateGraph(PlanState)
    graph.add_node("plan", node)
    graph.add_edge(START, "plan")
    told = collect(graph.compile(), sync)
    pieces = [data["text"] for data in told if data["type"] == "tts.tokens"]
    assert sorted(pieces) == sorted(["I ", "would ", "add.", "I ", "would ", "take ", "away."])
    assert {row["text"] for row in Screen(told).rows()} == {"I would add.", "I would take away."}


@pytest.mark.parametrize("sync", [True, False])
def test_searches_side_by_side_are_told_apart_by_their_task(sync: bool, tmp_path: Path) -> None:
    class SideBySide(PlanState):
        tts: Annotated[Any, lambda _, new: new]  # type: ignore[misc]

    node: Any = make_graph(make_engine(), stream_candidates=True, solvable=False).nodes["plan"].runnable
    graph = StateGraph(SideBySide)
    graph.add_node("plan", node)
    graph.add_conditional_edges(START, lambda state: [Send("plan", state) for _ in range(3)], ["plan"])
    told = collect(graph.compile(), sync)
    tasks = {data["task"] for data in told}
    assert len(tasks) == 3 and {data["search"] for data in told} == {"plan/1"}
    trees = [Screen(data for data in told if data["task"] == task).rows() for task in sorted(tasks)]
    assert trees[0] and trees[0] == trees[1] == trees[2]


@pytest.mark.parametrize("subgraphs", [True, False])
@pytest.mark.parametrize("sync", [True, False])
def test_the_journal_is_on_no_stream(sync: bool, subgraphs: bool) -> None:
    for mode, most in (("updates", 1), ("tasks", 2)):
        graph = make_graph(make_engine(), flush_events=3).compile(checkpointer=InMemorySaver())
        assert len(collect(graph, sync, mode=mode, subgraphs=subgraphs)) == most


@pytest.mark.parametrize("sync", [True, False])
def test_a_search_in_a_sub_graph_tells_as_the_sub_graph(sync: bool) -> None:
    graph = StateGraph(PlanState)
    graph.add_node("inner", make_graph(make_engine()).compile())
    graph.add_edge(START, "inner")
    graph.add_edge("inner", END)
    agent = graph.compile()
    told = collect(agent, sync, subgraphs=True)
    assert {space[0].split(":")[0] for space, _ in told} == {"inner"} and {len(space) for space, _ in told} == {1}
    assert {data["node"] for _, data in told} == {"plan"}
    updates = collect(agent, sync, mode="updates", subgraphs=True)
    assert [list(update) for _, update in updates] == [["plan"], ["inner"]]
    assert collect(agent, sync) == []  # as whatever a sub-graph writes


def broken(trace: Path) -> StateGraph[Any, Any, Any, Any]:
    """A planning step whose engine gives up on the way."""
    engine = make_engine(faults=OUTAGE)
    search: dict[str, Any] = {"strategy": STRATEGIES["best_first"], "verifier": None, "flush_events": 8}
    return make_graph(engine, trace=trace, stream_candidates=True, **search)


class TestResume:
    @pytest.mark.parametrize("sync", [True, False])
    def test_what_was_told_is_told_again_as_such_and_nothing_twice_as_new(self, sync: bool, tmp_path: Path) -> None:
        agent = broken(tmp_path / "trace").compile(checkpointer=InMemorySaver())
        told = [collect(agent, sync)]
        while agent.get_state(THREAD).next:
            told.append(collect(agent, sync, start=None))
        assert len(told) > 1 and not any("replayed" in data for data in told[0])
        for later in told[1:]:
            assert later[0]["replayed"] and later[0]["type"] == "tts.opened"
            again = [data["type"] for data in later if "replayed" in data]
            assert again[-2:] == ["tts.best", "tts.budget"] and again.count("tts.best") == 1
        every = [data for run in told for data in run]
        assert len({data["task"] for data in every}) == 1
        screen = Screen(every)
        assert len(screen.fresh) == len(set(screen.fresh))
        assert screen.rows() == Screen(told[-1]).rows() == tree(tmp_path / "trace")

    @pytest.mark.parametrize(
        ("strategy", "kills"), [("best_first", (40,)), pytest.param("beam", (25, 60), marks=pytest.mark.verify)]
    )
    def test_a_kill_loses_and_doubles_nothing_on_the_screen(
        self, strategy: str, kills: tuple[int, ...], tmp_path: Path
    ) -> None:
        told, command = tmp_path / "told.jsonl", [sys.executable, "-m", "tests.nodes.listener", str(tmp_path), strategy]
        for most in kills:
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            while process.poll() is None and (not told.exists() or told.read_bytes().count(b"\n") < most):
                time.sleep(0.005)
            process.kill()
            process.wait()
            told.write_bytes(told.read_bytes()[: told.read_bytes().rfind(b"\n") + 1])
        subprocess.run(command, check=True, timeout=60)
        screen = Screen(json.loads(line) for line in told.read_text().splitlines())
        assert screen.rows() == tree(tmp_path / "trace.jsonl")
        assert screen.last("tts.chosen")["at"] == len(read(tmp_path / "trace.jsonl")[-1].events) - 1
        lost = [data for data in screen.log if data.get("change") == "lost" and data["reservation"] is None]
        assert len(lost) == len(kills)

    def test_a_retried_node_tells_again_what_it_had_settled(self, tmp_path: Path) -> None:
        graph = StateGraph(PlanState)
        node: Any = broken(tmp_path / "trace").nodes["plan"].runnable
        graph.add_node("plan", node, retry_policy=RetryPolicy(initial_interval=0.0, max_attempts=4))
        graph.add_edge(START, "plan")
        screen = Screen(told := collect(graph.compile(), False))
        assert any("replayed" in data for data in told)
        assert len(screen.fresh) == len(set(screen.fresh))
        assert screen.rows() == tree(tmp_path / "trace")


class TestOutside:
    """What others do to a search is told as well."""

    def test_a_handle_that_deepens_and_stops(self, tmp_path: Path) -> None:
        graph = make_graph(
            make_engine(pace=0.002),
            strategy=STRATEGIES["best_first"],
            solvable=False,
            trace=tmp_path / "trace",
            stream_candidates=True,
        ).compile()
        told: list[dict[str, Any]] = []
        for data in graph.stream(GO, THREAD, stream_mode="custom"):
            told.append(data)
            if len(told) == 20:
                (handle,) = running_searches(thread="1")
                handle.deepen(calls=7)
                handle.stop("enough")
        (deepened,) = (data for data in told if data.get("change") == "deepened")
        assert deepened["more"] == {"calls": 7}
        assert (told[-1]["type"], told[-1]["stop"], told[-1]["reason"]) == ("tts.chosen", "cancelled", "enough")
        assert Screen(told).rows() == tree(tmp_path / "trace")

    @pytest.mark.parametrize("sync", [True, False])
    def test_a_reviewer_who_deepens_and_then_chooses(self, sync: bool, tmp_path: Path) -> None:
        agent = make_graph(
            make_engine(),
            strategy=STRATEGIES["best_first"],
            budget=Budget(computed_tokens=600),
            solvable=False,
            review=3,
            trace=tmp_path / "trace",
            stream_candidates=True,
        ).compile(checkpointer=InMemorySaver())
        told = [collect(agent, sync)]
        told.append(collect(agent, sync, start=Command(resume={"more": {"computed_tokens": 400}})))
        (question,) = agent.get_state(THREAD).interrupts
        choice = question.value["candidates"][-1]["choice"]
        told.append(collect(agent, sync, start=Command(resume={"choose": choice})))
        assert not agent.get_state(THREAD).next
        for later in told[1:]:
            again = [data for data in later if "replayed" in data]
            assert later[: len(again)] == again
            assert [data["type"] for data in again].count("tts.opened") == 1
        assert [data["change"] for data in told[1] if data["type"] == "tts.budget"][1] == "deepened"
        assert [data["type"] for data in told[2] if "replayed" not in data] == ["tts.chosen"]
        screen = Screen(data for run in told for data in run)
        assert len(screen.fresh) == len(set(screen.fresh))
        assert screen.rows() == tree(tmp_path / "trace")


class TestStages:
    @pytest.mark.parametrize("sync", [True, False])
    def test_every_stage_tells_what_it_does(self, sync: bool) -> None:
        told = collect(make_stages(make_engine()).compile(), sync)
        kinds = {
            node: {data["type"] for data in told if data["node"] == node} for node in ("expand", "verify", "select")
        }
        assert "tts.thought" in kinds["expand"] and "tts.verdict" not in kinds["select"]
        assert "tts.verdict" in kinds["verify"]
        assert "tts.chosen" in kinds["select"]

    @pytest.mark.parametrize("sync", [True, False])
    def test_what_other_nodes_add_is_told_too_and_once(self, sync: bool, tmp_path: Path) -> None:
        engine = make_engine()

        def look(state: Any) -> Any:
            branches = unjudged(state, engine.decode)
            return judge(branches, [Verdict(1 / (1 + len(branch.text)), "so", "graph") for branch in branches])

        def cull(state: Any) -> Any:
            return drop([branch for branch in growable(state, engine.decode) if "a" in branch.thought.text], "has an a")

        options: dict[str, Any] = {"trace": tmp_path / "trace", "solvable": False, "stream_candidates": True}
        graph = make_stages(engine, verify=look, verifier=OutsideVerifier(name="graph"), **options)
        graph.add_node("cull", cull)
        graph.edges.remove(("verify", "select"))
        graph.add_edge("verify", "cull")
        graph.add_edge("cull", "select")
        told = collect(graph.compile(), sync)
        screen = Screen(told)
        assert screen.rows() == tree(tmp_path / "trace")
        assert {row.get("pruned") for row in screen.rows()} >= {"has an a", "beam"}
        assert len(screen.fresh) == len(set(screen.fresh)) and [data["at"] for data in told] == sorted(
            data["at"] for data in told
        )
        assert {data["verifier"] for data in told if data["type"] == "tts.verdict"} == {"graph"}


class TestNobodyListens:
    @pytest.fixture(autouse=True)
    def refuse(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def build(*args: Any, **kwargs: Any) -> None:
            raise AssertionError("a search was observed, and nobody listens")

        monkeypatch.setattr(ObservedSearch, "__init__", build)

    @pytest.mark.parametrize("timeout", [None, 60.0])
    @pytest.mark.parametrize("staged", [True, False])
    async def test_nothing_is_built(self, staged: bool, timeout: float | None) -> None:
        builder = (make_stages if staged else make_graph)(make_engine())
        for spec in builder.nodes.values():
            spec.timeout = TimeoutPolicy(run_timeout=timeout) if timeout else None
        graph = builder.compile()
        assert (await graph.ainvoke(GO))["messages"]
        assert [update async for update in graph.astream(GO, stream_mode="updates")]
        if timeout is None:
            assert graph.invoke(GO)["messages"]
            assert list(graph.stream(GO, stream_mode=["values", "updates"], subgraphs=True))

    async def test_somebody_does(self) -> None:
        with pytest.raises(AssertionError, match="nobody listens"):
            await make_graph(make_engine()).compile().ainvoke(GO, stream_mode="custom")


@pytest.mark.filterwarnings("ignore:The v3 streaming protocol")
class TestProjection:
    """`run.tts` of `stream_events(version="v3")`."""

    def check(self, seen: list[Progress]) -> None:
        assert {type(item) for item in seen} == {Progress}
        assert seen[0].kind == "opened" and seen[-1].kind == "chosen"
        assert seen[-1].usage.generated and seen[-1].details["stop"]
        thought = next(item for item in seen if item.kind == "thought")
        assert (thought.node, thought.branch, thought.parent, thought.depth) == ("plan", 1, 0, 1)
        assert thought.usage.generated and thought.details["status"] and thought.details["text"]

    @pytest.mark.parametrize("compiled", [True, False])
    async def test_async(self, compiled: bool) -> None:
        graph = make_graph(make_engine(), stream_candidates=True)
        agent = graph.compile(transformers=[TTSTransformer]) if compiled else graph.compile()
        per_call = {} if compiled else {"transformers": [TTSTransformer]}
        run = await agent.astream_events(GO, version="v3", **per_call)
        self.check([item async for item in run.tts])
        assert (await run.output())["tts"]["outcome"]["stop"]

    @pytest.mark.parametrize("compiled", [True, False])
    def test_sync(self, compiled: bool) -> None:
        graph = make_graph(make_engine(), stream_candidates=True)
        agent = graph.compile(transformers=[TTSTransformer]) if compiled else graph.compile()
        per_call = {} if compiled else {"transformers": [TTSTransformer]}
        run = agent.stream_events(GO, version="v3", **per_call)
        self.check(list(run.tts))

    async def test_messages_show_the_decision_alone_and_no_sub_graph_is_seen(self) -> None:
        agent = make_graph(make_engine(), flush_events=3).compile(transformers=[TTSTransformer])
        run = await agent.astream_events(GO, version="v3")
        assert len([await message.text async for message in run.messages]) == 1
        run = await agent.astream_events(GO, version="v3")
        assert [graph async for graph in run.subgraphs] == []

    async def test_a_sub_graph_has_its_own(self) -> None:
        graph = StateGraph(PlanState)
        graph.add_node("inner", make_graph(make_engine(), stream_candidates=True).compile())
        graph.add_edge(START, "inner")
        run = await graph.compile(transformers=[TTSTransformer]).astream_events(GO, version="v3")
        async for inner in run.subgraphs:
            self.check([item async for item in inner.tts])


def test_only_what_a_search_told_is_read() -> None:
    with pytest.raises(LogError, match="not told by a search"):
        Progress.read({"type": "tts.unknown"})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=5), each, max_size=3),
    max_leaves=6,
)
FIELDS = ("type", "node", "search", "task", "at", "branch", "parent", "depth", "value", "usage", "replayed", "text")


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_whatever_others_write_is_read_or_not_told(data: st.DataObject) -> None:
    told: dict[str, Any] = {"type": "tts.thought", "node": "plan", "search": "plan/1", "task": "", "at": 3}
    told |= {"branch": 1, "parent": 0, "depth": 1, "value": None, "usage": {"generated": 2}}
    assert Progress.told(told) and Progress.read(told).usage == Usage(generated=2)
    for name in data.draw(st.sets(st.sampled_from(FIELDS), max_size=4)):
        told.pop(name, None)
    told |= data.draw(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4))
    for foreign in (told, list(told.items()), told.get("type"), data.draw(JSON)):
        if Progress.told(foreign):
            assert Progress.read(foreign).node == foreign["node"]
        else:
            with pytest.raises(LogError, match="not told by a search"):
                Progress.read(foreign)


@pytest.mark.filterwarnings("ignore:The v3 streaming protocol")
@pytest.mark.parametrize("data", [{"type": ["x"]}, {"type": "tts.tokens", "text": "to speech"}, "tts.tokens", None])
async def test_what_others_write_is_no_progress_and_stays_on_the_stream(data: Any) -> None:
    def mine(state: PlanState) -> dict[str, Any]:
        get_stream_writer()(data)
        return {}

    graph = StateGraph(PlanState)
    graph.add_node("mine", mine)
    graph.add_edge(START, "mine")
    agent = graph.compile(transformers=[TTSTransformer])
    assert [item async for item in (await agent.astream_events(GO, version="v3")).tts] == []
    assert [item async for item in agent.astream(GO, stream_mode="custom")] == [data]
