"""A search in traces: what handlers of LangChain's callbacks, OpenTelemetry and LangSmith get to see of it."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.schemas import Run
from langgraph.errors import NodeTimeoutError
from langgraph.graph import END, START, StateGraph
from langgraph.types import TimeoutPolicy

from tests.nodes.chatting import ChatDialect
from tests.nodes.collector import collector
from tests.nodes.test_plan import GO
from tests.nodes.test_stages import make_stages
from tests.nodes.test_stream import SEARCHES
from tests.nodes.world import make_engine, make_graph
from tests.scripts import make_verifier
from tts_agent import BestOfN, Budget, Verdict
from tts_agent.engines import Fault
from tts_agent.engines.chat import ChatEngine
from tts_agent.errors import EngineUnavailable
from tts_agent.events import Planned
from tts_agent.nodes import PlanState, make_plan_node
from tts_agent.nodes.observed import ObservedSearch
from tts_agent.trace.recorder import read
from tts_agent.tree import Branch
from tts_agent.usage import Usage, total_usage


class Book(BaseTracer):
    """Keeps every run; what is still in `run_map` was never ended."""

    run_inline = True

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[Run] = []

    def _persist_run(self, run: Run) -> None:
        """Roots are kept where all are."""

    def _start_trace(self, run: Run) -> None:
        super()._start_trace(run)
        self.runs.append(run)

    def named(self, name: str) -> list[Run]:
        return [run for run in self.runs if run.name == name]

    @property
    def expansions(self) -> list[Run]:
        return self.named("tts.expand")

    @property
    def verifications(self) -> list[Run]:
        return self.named("tts.verify")

    def check_closed(self) -> None:
        assert not self.run_map
        assert all(run.end_time is not None for run in self.runs)


def run(graph: Any, sync: bool, *handlers: BaseCallbackHandler, **options: Any) -> Any:
    config: Any = {"callbacks": list(handlers)}
    if sync:
        return graph.invoke(GO, config, **options)
    return asyncio.run(graph.ainvoke(GO, config, **options))


def metadata(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = (run.extra or {})["metadata"]
    return found


def used(run: Run) -> Usage:
    """Tokens that a run tells."""
    assert run.outputs is not None
    if run.run_type == "llm":
        messages = [generation["message"]["kwargs"] for generation in run.outputs["generations"][0]]
        told = [message["usage_metadata"] for message in messages if message.get("usage_metadata")]
        assert len(told) == 1
    else:
        told = [run.outputs["usage_metadata"]]
    cached = told[0]["input_token_details"]["cache_read"]
    assert told[0]["total_tokens"] == told[0]["input_tokens"] + told[0]["output_tokens"]
    return Usage(told[0]["input_tokens"] - cached, cached, told[0]["output_tokens"])


def tokens(usage: Usage) -> Usage:
    return Usage(usage.prompt_computed, usage.prompt_cached, usage.generated)


@pytest.mark.parametrize("staged", [True, False])
@pytest.mark.parametrize("sync", [True, False])
def test_expansions_and_verifications_are_runs_under_the_node(sync: bool, staged: bool, tmp_path: Path) -> None:
    book, path = Book(), tmp_path / "trace"
    graph = (make_stages if staged else make_graph)(make_engine(), solvable=False, trace=path).compile()
    outcome = run(graph, sync, book)["tts"]["outcome"]
    book.check_closed()
    assert len(book.expansions) == sum(isinstance(event, Planned) for event in read(path)[-1].events)
    parents = {str(one.id): one.name for one in book.runs}
    assert {parents[str(one.parent_run_id)] for one in book.expansions} == {"expand" if staged else "plan"}
    assert {parents[str(one.parent_run_id)] for one in book.verifications} == {"verify" if staged else "plan"}
    branches = [branch for one in book.expansions for branch in metadata(one)["tts_branches"]]
    assert sorted(branches) == list(range(1, outcome["thoughts"] + 1))
    first = book.expansions[0]
    assert (metadata(first)["tts_parent"], metadata(first)["tts_depth"], metadata(first)["tts_expansion"]) == (0, 1, 0)
    assert first.run_type == "llm" and metadata(first)["ls_model_name"] == "scripted"
    assert {metadata(one)["tts_search"] for one in book.expansions} == {"plan/1"}
    verdicts = [verdict for one in book.verifications for verdict in (one.outputs or {})["verdicts"]]
    assert {verdict["branch"] for verdict in verdicts} <= set(branches)
    assert all(0 <= verdict["score"] <= 1 for verdict in verdicts)
    assert total_usage(map(used, book.expansions + book.verifications)) == tokens(Usage.from_json(outcome["usage"]))


@given(
    name=st.sampled_from(sorted(SEARCHES)),
    seed=st.integers(0, 50),
    sync=st.booleans(),
    staged=st.booleans(),
    solvable=st.booleans(),
    generated=st.sampled_from([60, 1500]),
    faults=st.dictionaries(st.integers(0, 12), st.sampled_from(["refused", "lost"]).map(Fault), max_size=3),
)
@settings(max_examples=15, deadline=None)
def test_every_run_ends_and_nothing_changes_because_it_is_watched(
    name: str, seed: int, sync: bool, staged: bool, solvable: bool, generated: int, faults: dict[int, Fault]
) -> None:
    options: dict[str, Any] = {"strategy": SEARCHES[name], "seed": seed, "solvable": solvable}
    options["budget"] = Budget(generated_tokens=generated)
    make = make_stages if staged else make_graph
    book, results = Book(), []
    for handlers in ([], [book]):
        try:
            result = run(make(make_engine(faults=faults), **options).compile(), sync, *handlers)
            results.append(result["tts"]["outcome"])
        except EngineUnavailable as outage:
            results.append(str(outage))
    book.check_closed()
    assert results[0] == results[1]
    failed = [one for one in book.expansions + book.verifications if one.error]
    assert all("EngineUnavailable" in str(one.error) for one in failed)
    assert failed or not any(one.error for one in book.runs)


def test_samples_that_are_aborted_end_as_cancelled_with_what_they_used() -> None:
    for seed in range(8):
        graph = make_graph(make_engine(), strategy=SEARCHES["best_first"], seed=seed).compile()
        outcome = run(graph, False, book := Book())["tts"]["outcome"]
        book.check_closed()
        assert not any(one.error for one in book.runs)
        cancelled = [one for one in book.runs if "cancelled" in json.dumps(one.outputs, default=str)]
        told = total_usage(used(one) for one in book.expansions + book.verifications if one.outputs)
        if cancelled and not outcome["lost"]:
            assert told == tokens(Usage.from_json(outcome["usage"]))
            return
    raise AssertionError("no search was solved while something was under way")


class Listening(AsyncCallbackHandler):
    """An asynchronous handler that takes its time."""

    def __init__(self, pause: float = 0.001) -> None:
        self.pause = pause
        self.own: set[Any] = set()  # runs of the search that are not ended
        self.seen = 0

    async def _begin(self, *args: Any, run_id: Any, **kwargs: Any) -> None:
        await asyncio.sleep(self.pause)
        if str(kwargs.get("name")).startswith("tts."):
            self.own.add(run_id)
            self.seen += 1

    async def _end(self, *args: Any, run_id: Any, **kwargs: Any) -> None:
        await asyncio.sleep(self.pause)
        self.own.discard(run_id)

    on_chain_start = on_chat_model_start = _begin
    on_chain_end = on_chain_error = on_llm_end = on_llm_error = _end


class TestStopped:
    """However a search is stopped from outside, its runs are ended."""

    async def test_by_cancelling_the_graph(self) -> None:
        book = Book()
        agent = make_graph(make_engine(pace=0.02), solvable=False).compile()
        task = asyncio.create_task(agent.ainvoke(GO, {"callbacks": [book]}))
        while len(book.expansions) < 3:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await self.check(book)

    @pytest.mark.parametrize("idle", [True, False])
    async def test_by_a_timeout(self, idle: bool) -> None:
        book = Book()
        node: Any = make_graph(make_engine(pace=0.5), solvable=False).nodes["plan"].runnable
        graph = StateGraph(PlanState)
        limit = TimeoutPolicy(idle_timeout=0.2) if idle else TimeoutPolicy(run_timeout=0.2)
        graph.add_node("plan", node, timeout=limit)
        graph.add_edge(START, "plan")
        with pytest.raises(NodeTimeoutError):
            await graph.compile().ainvoke(GO, {"callbacks": [book]})
        await self.check(book)

    @pytest.mark.parametrize("after", [0.01, 0.02, 0.03, 0.04, 0.06, 0.1])
    async def test_while_a_handler_is_being_told(self, after: float) -> None:
        listening = Listening(pause=0.02)
        agent = make_graph(make_engine(pace=0.001), solvable=False).compile()
        task = asyncio.create_task(agent.ainvoke(GO, {"callbacks": [listening]}))
        await asyncio.sleep(after)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for _ in range(400):
            if not listening.own:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{len(listening.own)} runs were never ended")

    @staticmethod
    async def check(book: Book) -> None:
        own = book.expansions + book.verifications
        for _ in range(400):  # a graph does not wait for what it cancels
            if all(one.end_time for one in own):
                break
            await asyncio.sleep(0.01)
        assert own and all(one.end_time for one in own) and not any(one.error for one in own)
        assert any("cancelled" in json.dumps(one.outputs, default=str) for one in own)


@pytest.mark.parametrize("sync", [True, False])
def test_a_verifier_that_fails_is_an_error_in_the_trace_and_no_verdict(sync: bool) -> None:
    class Broken:
        name, scope = "broken", "thought"

        def bound(self, prompt: int) -> Usage:
            return Usage()

        async def __call__(self, branches: Sequence[Branch]) -> Sequence[Verdict]:
            raise ArithmeticError("no idea")

    book = Book()
    run(make_graph(make_engine(), verifier=Broken()).compile(), sync, book)
    book.check_closed()
    assert book.verifications and all("no idea" in str(one.error) for one in book.verifications)
    assert not any(one.error for one in book.expansions)


@pytest.mark.parametrize("sync", [True, False])
def test_asynchronous_handlers_are_awaited_beside_others(sync: bool) -> None:
    listening, book, counting = Listening(), Book(), UsageMetadataCallbackHandler()
    outcome = run(make_graph(make_engine()).compile(), sync, listening, book, counting)["tts"]["outcome"]
    assert listening.seen == len(book.expansions) + len(book.verifications) and not listening.own
    counted = counting.usage_metadata["scripted"]
    assert counted["output_tokens"] == outcome["usage"]["generated"]


class Speaker(BaseChatModel):
    """A chat model that says a number."""

    said: int = 0

    @property
    def _llm_type(self) -> str:
        return "speaker"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        self.said += 1
        usage: Any = {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}
        return ChatResult(generations=[ChatGeneration(message=AIMessage(str(self.said), usage_metadata=usage))])


@pytest.mark.parametrize("sync", [True, False])
def test_calls_of_models_stand_in_the_runs_that_made_them(sync: bool) -> None:
    model, judging = Speaker(), Speaker(name="judging")
    engine = ChatEngine(model)

    node = make_plan_node(
        engine,
        dialect=ChatDialect(engine),
        strategy=BestOfN(n=3, width=3),
        verifier=Asking(judging),
    )
    graph = StateGraph(PlanState)
    graph.add_node("plan", node)
    graph.add_edge(START, "plan")
    graph.add_edge("plan", END)
    book = Book()
    run(graph.compile(), sync, book)
    book.check_closed()
    names = {str(one.id): one.name for one in book.runs}
    calls = [(one.name, names[str(one.parent_run_id)]) for one in book.runs if one.run_type == "llm"]
    assert sorted(calls) == [("Speaker", "tts.expand")] * 3 + [("judging", "tts.verify")] * 3
    (expansion,) = book.expansions
    assert expansion.run_type == "chain" and (expansion.outputs or {})["usage"]["generated"] == 6


class Asking:
    """A verifier that asks a chat model about each branch."""

    name, scope = "asking", "thought"

    def __init__(self, model: BaseChatModel) -> None:
        self._model = model

    def bound(self, prompt: int) -> Usage:
        return Usage()

    async def __call__(self, branches: Sequence[Branch]) -> Sequence[Verdict]:
        return [Verdict(1 / len((await self._model.ainvoke("how good?")).text)) for _ in branches]


class Deaf(BaseCallbackHandler):
    """A handler that neither chains nor models interest."""

    ignore_chain = ignore_llm = ignore_chat_model = True


@pytest.mark.parametrize("sync", [True, False])
def test_nothing_is_built_for_nobody(sync: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a search was observed, and nobody listens")

    monkeypatch.setattr(ObservedSearch, "__init__", build)
    for handlers in ((), (Deaf(),)):
        assert run(make_graph(make_engine()).compile(), sync, *handlers)["messages"]
    with pytest.raises(AssertionError, match="nobody listens"):
        run(make_graph(make_engine()).compile(), sync, Book())


class Counting(BaseCallbackHandler):
    """Counts the tokens of models, and hears of nothing else."""

    ignore_chain = True

    def __init__(self) -> None:
        self.begun = self.tokens = 0

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        self.begun += 1

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        told = [generation.message.usage_metadata for generation in response.generations[0]]
        self.tokens += sum(usage["output_tokens"] for usage in told if usage)


@pytest.mark.parametrize("staged", [True, False])
@pytest.mark.parametrize("sync", [True, False])
def test_a_handler_that_ignores_chains_hears_of_models(sync: bool, staged: bool) -> None:
    for beside in ((), (Book(),)):
        counting = Counting()
        graph = (make_stages if staged else make_graph)(make_engine()).compile()
        outcome = run(graph, sync, counting, *beside)["tts"]["outcome"]
        assert counting.begun and counting.tokens == outcome["usage"]["generated"]


# --- where traces usually go


def trace(tmp_path: Path, *arguments: str, **switches: str) -> dict[str, Any]:
    """The outcome of a step that another process planned."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LANGSMITH", "LANGCHAIN"))}
    outcome = tmp_path / "outcome.json"
    command = [sys.executable, "-m", "tests.nodes.traced", str(outcome), *arguments]
    done = subprocess.run(
        command,
        env=environment | {"LANGSMITH_TRACING": "true", "LANGSMITH_API_KEY": "none"} | switches,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(outcome.read_text())
    return told


def test_opentelemetry_gets_a_span_for_each(tmp_path: Path) -> None:
    path = tmp_path / "spans.json"
    switches = {"LANGSMITH_OTEL_ENABLED": "true", "LANGSMITH_OTEL_ONLY": "true"}
    outcome = trace(tmp_path, str(path), **switches)
    spans = json.loads(path.read_text())
    names = {span["context"]["span_id"]: span["name"] for span in spans}
    expansions = [span for span in spans if span["name"] == "tts.expand"]
    verifications = [span for span in spans if span["name"] == "tts.verify"]
    assert expansions and verifications
    for span in expansions + verifications:
        assert names[span["parent_id"]] == "plan"
        assert span["status"]["status_code"] == "OK" and span["end_time"] >= span["start_time"]
    generated = sum(span["attributes"]["gen_ai.usage.output_tokens"] for span in expansions)
    prompt = sum(span["attributes"]["gen_ai.usage.input_tokens"] for span in expansions + verifications)
    assert generated == outcome["usage"]["generated"] and prompt == outcome["usage"]["prompt_computed"]
    branches = [b for span in expansions for b in json.loads(span["attributes"]["langsmith.metadata.tts_branches"])]
    assert len(set(branches)) == len(branches) >= outcome["thoughts"]


def test_langsmith_gets_a_run_for_each(tmp_path: Path) -> None:
    with collector() as found:
        switches = {"LANGSMITH_ENDPOINT": found.address, "LANGSMITH_DISABLE_RUN_COMPRESSION": "true"}
        outcome = trace(tmp_path, **switches)
    named = {name: [one for one in found.runs.values() if one["name"] == name] for name in ("tts.expand", "tts.verify")}
    (plan,) = (one for one in found.runs.values() if one["name"] == "plan")
    assert all(one.get("end_time") for one in found.runs.values())
    for one in named["tts.expand"] + named["tts.verify"]:
        assert one["parent_run_id"] == plan["id"] and not one.get("error")
    usage = [one["extra"]["metadata"]["usage_metadata"] for one in named["tts.expand"]]
    assert sum(one["output_tokens"] for one in usage) == outcome["usage"]["generated"]
    scores = [verdict["score"] for one in named["tts.verify"] for verdict in one["outputs"]["verdicts"]]
    assert scores and all(0 <= score <= 1 for score in scores)
    assert make_verifier(make_engine()).name in {
        one["extra"]["metadata"]["tts_verifier"] for one in named["tts.verify"]
    }
