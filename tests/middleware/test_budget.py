"""A budget for any agent: never passed where it is hard, said where it is soft, and no exception when it ends."""

import asyncio
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    HumanInTheLoopMiddleware,
    ModelRetryMiddleware,
    SummarizationMiddleware,
)
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.types import Command, interrupt

from tests.middleware.world import PRICES, Broken, Fault, Teller, Uncapped, add, calls
from tts_agent import Budget, Prices
from tts_agent.errors import BudgetError, ConfigError, LogError
from tts_agent.middleware import BudgetMiddleware, BudgetRefusal, TextBound
from tts_agent.nodes import SharedBudget
from tts_agent.nodes import shared as shared_module

GO: Any = {"messages": [("user", "go")]}  # another message each time
THREAD: Any = {"configurable": {"thread_id": "1"}}


def adding(messages: Sequence[BaseMessage], call: int) -> AIMessage:
    """Adds for ever."""
    return calls("add", a=1, b=call)


def spent(result: Any, name: str = "agent") -> Any:
    return result["tts_budgets"][name]


class FanOut(AgentMiddleware[Any, Any, Any]):
    """Calls the model `n` times at once, and gives up after `patience` seconds on those that hang."""

    def __init__(self, n: int, patience: float = 5.0) -> None:
        super().__init__()
        self.n, self.patience = n, patience

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        def one() -> Any:
            try:
                return handler(request)
            except (Broken, BudgetRefusal) as error:
                return error

        with ThreadPoolExecutor(self.n) as pool:
            done = [future.result() for future in [pool.submit(copy_context().run, one) for _ in range(self.n)]]
        return self._pick(done)

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        tasks = [asyncio.ensure_future(handler(request)) for _ in range(self.n)]
        _, late = await asyncio.wait(tasks, timeout=self.patience)
        for task in late:
            task.cancel()
        return self._pick(await asyncio.gather(*tasks, return_exceptions=True))

    @staticmethod
    def _pick(done: list[Any]) -> Any:
        answers = [each for each in done if not isinstance(each, BaseException)]
        refused = [each for each in done if isinstance(each, BudgetRefusal)]
        if answers:
            return answers[0]
        raise (refused or [Broken("none came through")])[0]


async def run(agent: Any, start: Any = GO) -> Any:
    """The result; None if the model failed for good."""
    try:
        return await agent.ainvoke(start, {"recursion_limit": 200})
    except Broken:
        return None


faults = st.dictionaries(st.integers(0, 80), st.sampled_from(Fault.__args__), max_size=20)  # type: ignore[attr-defined]


budgets = st.builds(
    Budget,
    calls=st.none() | st.integers(1, 90),
    total_tokens=st.none() | st.integers(300, 12_000),
    generated_tokens=st.none() | st.integers(64, 3000),
    dollars=st.none() | st.floats(0.001, 0.05),
)
cases = given(n=st.integers(1, 64), budget=budgets, faults=faults, sync=st.booleans())


def check_fan_out(n: int, budget: Budget, faults: dict[int, Fault], sync: bool) -> None:
    if sync:
        faults = {call: fault for call, fault in faults.items() if fault != "hangs"}
    model = Teller(
        lambda messages, call: "word " * (call * 7 % 40) if call % 3 or call > 99 else adding(messages, call),
        faults=faults,
        max_tokens=120,
    )
    guard = BudgetMiddleware(budget, prices=PRICES, prompt_bound=TextBound())
    patience = 0.05 if "hangs" in faults.values() else 60.0
    agent = create_agent(model, [add], middleware=[guard, FanOut(n, patience)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*reports no usage")
        if sync:
            try:
                result: Any = agent.invoke(GO, {"recursion_limit": 200})
            except Broken:
                result = None
        else:
            result = asyncio.run(run(agent))
    served = model.served
    assert budget.calls is None or served.calls <= budget.calls
    assert budget.total_tokens is None or served.total <= budget.total_tokens
    assert budget.generated_tokens is None or served.generated <= budget.generated_tokens
    assert budget.dollars is None or served.dollars <= budget.dollars + 1e-12
    if result is not None:
        told = spent(result)
        assert told["usage"].get("calls", 0) + told["lost"].get("calls", 0) == served.calls
        used = told["usage"].get("prompt_computed", 0) + told["usage"].get("generated", 0)
        if budget.total_tokens or budget.generated_tokens or budget.dollars:
            assert used + told["lost"].get("total_tokens", 0) >= served.total
        if not faults:
            assert used == served.total and not told["lost"]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@cases
def test_no_limit_is_passed_at_any_fan_out(n: int, budget: Budget, faults: dict[int, Fault], sync: bool) -> None:
    check_fan_out(n, budget, faults, sync)


@pytest.mark.verify
@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@cases
def test_no_limit_is_passed_in_many_cases(n: int, budget: Budget, faults: dict[int, Fault], sync: bool) -> None:
    check_fan_out(n, budget, faults, sync)


@pytest.mark.parametrize("sync", [True, False])
def test_the_agent_ends_with_a_message_that_says_why(sync: bool) -> None:
    model = Teller(adding)
    agent = create_agent(model, [add], middleware=[BudgetMiddleware(Budget(calls=3))])
    result = agent.invoke(GO) if sync else asyncio.run(agent.ainvoke(GO))
    last = result["messages"][-1]
    assert isinstance(last, AIMessage) and "3 calls" in last.text and not last.tool_calls
    assert last.response_metadata["tts"] == {"stop": "budget", "limit": "calls", "budget": {"calls": 3}}
    assert model.served.calls == 3
    assert spent(result)["usage"]["calls"] == 3 and spent(result)["limit"] == "calls" and spent(result)["soft"] == []


def test_it_can_raise_instead() -> None:
    agent = create_agent(Teller(adding), [add], middleware=[BudgetMiddleware(Budget(calls=2), at_limit="raise")])
    with pytest.raises(BudgetRefusal, match="calls limit"):
        agent.invoke(GO)


def test_an_answer_is_cut_to_what_is_left_and_never_raised_above_the_models_own_cap() -> None:
    model = Teller(lambda messages, call: "x" * 500 if call == 2 else adding(messages, call), max_tokens=200)
    guard = BudgetMiddleware(Budget(generated_tokens=110), prompt_bound=TextBound())
    result = create_agent(model, [add], middleware=[guard]).invoke(GO)
    assert model.served.caps[0] == 110  # the budget is below the model's own 200
    assert model.served.caps[2] == 98 and len(result["messages"][-1].text) == 98
    assert spent(result)["usage"]["generated"] == 110


def test_a_first_prompt_with_many_tools_is_cut_to_fit_and_not_refused() -> None:
    model = Teller(lambda messages, call: "done", max_tokens=5000)
    guard = BudgetMiddleware(Budget(total_tokens=1500), prompt_bound=TextBound())
    assert create_agent(model, [add], middleware=[guard]).invoke(GO)["messages"][-1].text == "done"
    assert model.served.calls == 1 and 64 <= (model.served.caps[0] or 0) < 1500


def test_a_model_that_fails_is_charged_and_the_failure_is_not_hidden() -> None:
    model = Teller(adding, faults={1: "raises late"}, max_tokens=100)
    guard = BudgetMiddleware(Budget(calls=10, total_tokens=9000), prompt_bound=TextBound())
    agent = create_agent(model, [add], middleware=[guard], checkpointer=InMemorySaver())
    with pytest.raises(Broken):
        agent.invoke(GO, THREAD)
    result = agent.invoke(None, THREAD)
    assert spent(result)["lost"]["calls"] == 1
    assert spent(result)["usage"]["calls"] + 1 == model.served.calls <= 10


def test_retries_inside_are_calls_too() -> None:
    model = Teller(adding, faults=dict.fromkeys(range(1, 50), "raises"))
    retry = ModelRetryMiddleware(max_retries=20, initial_delay=0, jitter=False)
    agent = create_agent(model, [add], middleware=[BudgetMiddleware(Budget(calls=4)), retry])
    assert agent.invoke(GO)["messages"][-1].text
    assert model.served.calls == 4


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("at_limit", ["message", "raise"])
def test_retries_that_give_up_do_not_hide_a_refusal(sync: bool, at_limit: Any) -> None:
    model = Teller(adding, faults=dict.fromkeys(range(50), "raises"))
    retry = ModelRetryMiddleware(max_retries=5, initial_delay=0, jitter=False)
    agent = create_agent(model, [add], middleware=[BudgetMiddleware(Budget(calls=2), at_limit=at_limit), retry])
    if at_limit == "raise":
        with pytest.raises(BudgetRefusal, match="calls limit"):
            agent.invoke(GO) if sync else asyncio.run(agent.ainvoke(GO))
    else:
        result = agent.invoke(GO) if sync else asyncio.run(agent.ainvoke(GO))
        assert "the budget of 2 calls" in result["messages"][-1].text and spent(result)["limit"] == "calls"
    assert model.served.calls == 2


def test_retries_that_give_up_for_another_reason_say_so() -> None:
    model = Teller(adding, faults=dict.fromkeys(range(50), "raises"))
    retry = ModelRetryMiddleware(max_retries=1, initial_delay=0, jitter=False)
    result = create_agent(model, [add], middleware=[BudgetMiddleware(Budget(calls=2)), retry]).invoke(GO)
    assert "Broken" in result["messages"][-1].text and spent(result)["limit"] is None


def test_retries_inside_do_not_keep_a_first_prompt_with_many_tools_from_being_cut() -> None:
    model = Teller(lambda messages, call: "done", max_tokens=5000)
    guard = BudgetMiddleware(Budget(total_tokens=1500), prompt_bound=TextBound())
    retry = ModelRetryMiddleware(max_retries=1, initial_delay=0, jitter=False)
    assert create_agent(model, [add], middleware=[guard, retry]).invoke(GO)["messages"][-1].text == "done"


def test_a_second_try_that_fits_leaves_no_limit_behind() -> None:
    guard = BudgetMiddleware(Budget(total_tokens=1500), prompt_bound=TextBound())
    result = create_agent(Teller(lambda m, c: "done", max_tokens=5000), [add], middleware=[guard]).invoke(GO)
    assert result["messages"][-1].text == "done" and spent(result)["limit"] is None


@settings(max_examples=20, deadline=None)
@given(
    outer=st.integers(1, 6), inner=st.integers(1, 6), tokens=st.none() | st.integers(100, 1500), within=st.booleans()
)
def test_only_the_budget_that_refuses_says_so(outer: int, inner: int, tokens: int | None, within: bool) -> None:
    large, small = Budget(calls=outer, total_tokens=tokens), Budget(calls=inner)
    guards = [
        BudgetMiddleware(large, name="large", prompt_bound=TextBound()),
        BudgetMiddleware(small, name="small", prompt_bound=TextBound()),
    ]
    result = create_agent(Teller(adding, max_tokens=20), [add], middleware=guards[:: 1 if within else -1]).invoke(GO)
    told = result["tts_budgets"]
    note = result["messages"][-1].response_metadata["tts"]
    (name,) = (name for name, entry in told.items() if entry["limit"])
    budget = {"large": large, "small": small}[name]
    assert told[name]["limit"] == note["limit"] in budget.to_json() and note["budget"] == budget.to_json()
    assert f"the budget of {budget.to_json()[note['limit']]:,} " in result["messages"][-1].text


def test_a_limit_is_written_out_in_full() -> None:
    guard = BudgetMiddleware(Budget(total_tokens=1_234_567), prompt_bound=TextBound())
    message = HumanMessage("x" * 1_300_000 * 3)
    result = create_agent(Teller(adding, max_tokens=50), [add], middleware=[guard]).invoke({"messages": [message]})
    assert "the budget of 1,234,567 total tokens" in result["messages"][-1].text


def test_a_model_of_a_tool_tells_its_cap_by_a_name_of_its_own() -> None:
    class Other(Teller):
        num_predict: int = 40

        def _cap(self, kwargs: Any) -> int | None:
            return kwargs.get("num_predict", self.num_predict)

    helper = Teller(lambda messages, call: "fine", max_tokens=30)

    @tool
    def ask() -> str:
        """Ask another model."""
        return str(helper.invoke("hello", max_tokens=30).text)

    guard = BudgetMiddleware(Budget(total_tokens=1200), prompt_bound=TextBound(), cap="num_predict")
    model = Other(lambda messages, call: "done" if isinstance(messages[-1], ToolMessage) else calls("ask"))
    result = create_agent(model, [ask], middleware=[guard]).invoke(GO)
    assert helper.served.calls == 1 and result["messages"][-1].text == "done" and spent(result)["soft"] == []


class TestSoft:
    def test_a_model_without_a_cap_is_soft_and_it_is_said_once(self) -> None:
        model = Uncapped(lambda messages, call: "x" * 900 if call > 2 else adding(messages, call))
        guard = BudgetMiddleware(Budget(generated_tokens=200), prompt_bound=TextBound(), output_tokens=50)
        agent = create_agent(model, [add], middleware=[guard])
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            result = agent.invoke(GO)
            agent.invoke(GO)
        assert len([each for each in said if "without a cap" in str(each.message)]) == 1
        assert any("without a cap" in why for why in spent(result)["soft"])
        assert any("more than was reserved" in why for why in spent(result)["soft"])
        assert spent(result)["usage"]["generated"] > 200  # charged as it was, and said

    def test_without_a_bound_for_the_prompt_it_is_an_estimate(self) -> None:
        guard = BudgetMiddleware(Budget(total_tokens=900))
        with pytest.warns(UserWarning, match="prompt_bound=TextBound"):
            result = create_agent(Teller(adding, max_tokens=50), [add], middleware=[guard]).invoke(GO)
        assert "estimated" in spent(result)["soft"][0] and spent(result)["limit"] == "total_tokens"

    def test_calls_alone_are_hard_whatever_the_model_says(self) -> None:
        model = Teller(adding, faults=dict.fromkeys(range(9), "silent"))
        result = create_agent(model, [add], middleware=[BudgetMiddleware(Budget(calls=2))]).invoke(GO)
        assert model.served.calls == 2 and spent(result)["soft"] == []

    def test_an_image_has_no_bound(self) -> None:
        image = HumanMessage([{"type": "text", "text": "look"}, {"type": "image", "url": "http://127.0.0.1/x.png"}])
        guard = BudgetMiddleware(Budget(total_tokens=5000), prompt_bound=TextBound())
        agent = create_agent(Teller(lambda messages, call: "done", max_tokens=50), [], middleware=[guard])
        with pytest.warns(UserWarning, match="no text"):
            agent.invoke({"messages": [image]})


class TestSubAgents:
    @staticmethod
    def team(budget: Any, inner: list[Any], n: int, *, steps: int = 3) -> tuple[Teller, Any]:
        """A manager that asks `n` workers at once; each works for `steps` calls. One model serves all."""

        def say(messages: Sequence[BaseMessage], call: int) -> AIMessage | str:
            if messages[0].text == "work":
                done = sum(isinstance(message, ToolMessage) for message in messages)
                return calls("add", a=1, b=done) if done < steps - 1 else "worked"
            return "managed" if isinstance(messages[-1], ToolMessage) else calls(*["worker"] * n)

        model = Teller(say, max_tokens=100)
        worker_agent = create_agent(model, [add], middleware=inner)

        @tool
        async def worker() -> str:
            """Work."""
            done = await worker_agent.ainvoke({"messages": [HumanMessage("work")]})
            return str(done["messages"][-1].text)

        return model, create_agent(model, [worker], middleware=[budget])

    @pytest.mark.parametrize("n", [1, 7, 64])
    async def test_what_tools_spend_counts_and_holds_without_any_middleware_of_theirs(self, n: int) -> None:
        model, agent = self.team(BudgetMiddleware(Budget(calls=20)), [], n)
        result = await agent.ainvoke(GO)
        assert model.served.calls == min(20, 2 + 3 * n)
        assert spent(result)["usage"]["calls"] == model.served.calls
        if n > 6:
            errors = [message for message in result["messages"] if getattr(message, "status", "") == "error"]
            assert errors and "calls limit" in errors[0].text
            assert "20 calls" in result["messages"][-1].text

    @pytest.mark.parametrize("n", [1, 7, 64])
    async def test_one_shared_budget_and_agents_that_end_by_themselves(self, n: int) -> None:
        shared = SharedBudget(Budget(calls=20), name="team")
        model, agent = self.team(BudgetMiddleware(shared), [BudgetMiddleware(shared)], n)
        result = await agent.ainvoke(GO)
        assert model.served.calls == min(20, 2 + 3 * n) == spent(result, "team")["usage"]["calls"]
        assert not [message for message in result["messages"] if getattr(message, "status", "") == "error"]

    async def test_a_sub_agent_is_held_to_its_own_budget_and_to_the_one_around(self) -> None:
        own = BudgetMiddleware(Budget(calls=2), name="worker", per="run")
        model, agent = self.team(BudgetMiddleware(Budget(calls=50)), [own], 5)
        result = await agent.ainvoke(GO)
        # All workers of one run share what their budget allows a run.
        assert model.served.calls == 2 + 2 == spent(result)["usage"]["calls"]

    async def test_a_worker_of_two_managers_is_held_to_its_own_budget_and_to_both_of_theirs(self) -> None:
        working = Teller(lambda messages, call: calls("add", a=1, b=call))
        guard = BudgetMiddleware(SharedBudget(Budget(calls=9), name="worker"))
        worker_agent = create_agent(working, [add], middleware=[guard])

        @tool
        async def worker() -> str:
            """Work."""
            return str((await worker_agent.ainvoke(GO))["messages"][-1].text)

        def manager(name: str, limit: int) -> Any:
            model = Teller(lambda m, c: "managed" if isinstance(m[-1], ToolMessage) else calls(*["worker"] * 4))
            agent = create_agent(model, [worker], middleware=[BudgetMiddleware(Budget(calls=limit), name=name)])

            @tool(name)
            async def manage() -> str:
                """Manage."""
                result = await agent.ainvoke(GO)
                return str(spent(result, name)["usage"]["calls"])

            return manage

        top = Teller(lambda m, c: "done" if isinstance(m[-1], ToolMessage) else calls("left", "right"))
        agent = create_agent(
            top, [manager("left", 5), manager("right", 6)], middleware=[BudgetMiddleware(Budget(calls=50))]
        )
        result = await agent.ainvoke(GO)
        left, right = (int(message.text) for message in result["messages"] if isinstance(message, ToolMessage))
        assert working.served.calls <= 9 and left <= 5 and right <= 6
        assert spent(result)["usage"]["calls"] == left + right + 2

    @pytest.mark.parametrize("own", [Budget(calls=500), Budget(total_tokens=10**6)])
    async def test_dollars_of_a_budget_around_hold_whatever_a_worker_counts(self, own: Budget) -> None:
        shared = SharedBudget(Budget(dollars=0.004), prices=PRICES, name="team")
        inner = BudgetMiddleware(own, name="worker", prompt_bound=TextBound())
        model, agent = self.team(BudgetMiddleware(shared, prompt_bound=TextBound()), [inner], 8, steps=6)
        result = await agent.ainvoke(GO)
        assert spent(result, "team")["usage"]["dollars"] == pytest.approx(model.served.dollars)
        assert 0 < model.served.dollars <= 0.004
        assert spent(result, "team")["limit"] == "dollars"

    async def test_a_worker_that_the_budget_around_stops_names_that_one(self) -> None:
        ended: list[Any] = []

        class Watch(AgentMiddleware[Any, Any, Any]):
            def after_agent(self, state: Any, runtime: Any) -> None:
                ended.append(state)

        own = BudgetMiddleware(Budget(calls=50), name="worker")
        _, agent = self.team(BudgetMiddleware(Budget(calls=3)), [own, Watch()], 1, steps=6)
        result = await agent.ainvoke(GO)
        last = ended[0]["messages"][-1]
        assert "the budget of 3 calls" in last.text and last.response_metadata["tts"]["budget"] == {"calls": 3}
        assert spent(ended[0], "worker")["limit"] is None and spent(result)["limit"] == "calls"

    def test_dollars_in_a_shared_budget_are_counted_at_its_prices_inside_another_with_prices(self) -> None:
        dear = Prices(prompt=300.0, generated=1500.0)
        shared = SharedBudget(Budget(dollars=10.0), prices=PRICES, name="worker")
        inner = BudgetMiddleware(shared, prompt_bound=TextBound())
        outer = BudgetMiddleware(Budget(dollars=10.0), prices=dear, prompt_bound=TextBound())
        model = Teller(lambda messages, call: "done", max_tokens=50)
        result = create_agent(model, [], middleware=[outer, inner]).invoke(GO)
        assert spent(result, "worker")["usage"]["dollars"] == pytest.approx(model.served.dollars)

    async def test_tokens_hold_over_a_whole_team(self) -> None:
        guard = BudgetMiddleware(Budget(total_tokens=4000), prompt_bound=TextBound())
        model, agent = self.team(guard, [BudgetMiddleware(guard.budget, prompt_bound=TextBound())], 12, steps=6)
        result = await agent.ainvoke(GO)
        told = spent(result)["usage"]
        assert told["prompt_computed"] + told["generated"] == model.served.total <= 4000

    def test_a_model_called_in_a_synchronous_tool_counts(self) -> None:
        model = Teller(lambda messages, call: calls("ask", "ask") if call == 0 else "fine")

        @tool
        def ask() -> str:
            """Ask the model."""
            return str(model.invoke("hello").text)

        result = create_agent(model, [ask], middleware=[BudgetMiddleware(Budget(calls=9))]).invoke(GO)
        assert spent(result)["usage"]["calls"] == 4 == model.served.calls


class TestTime:
    async def test_a_model_that_hangs_is_cancelled_and_charged(self) -> None:
        model = Teller(adding, faults={1: "hangs"}, max_tokens=50)
        guard = BudgetMiddleware(Budget(seconds=0.5, total_tokens=5000), prompt_bound=TextBound())
        result = await create_agent(model, [add], middleware=[guard]).ainvoke(GO)
        assert "0.5 seconds" in result["messages"][-1].text
        told = spent(result)
        assert told["limit"] == "seconds" and told["lost"]["calls"] == 1 and told["usage"]["calls"] == 1

    async def test_a_tool_that_hangs_is_cancelled(self) -> None:
        @tool
        async def hang() -> str:
            """Hang."""
            await asyncio.sleep(3600)
            return "never"

        model = Teller(lambda messages, call: calls("hang", "hang", "hang"))
        guard = BudgetMiddleware(Budget(seconds=0.3))
        result = await create_agent(model, [hang], middleware=[guard]).ainvoke(GO)
        assert [message.status for message in result["messages"][2:5]] == ["error"] * 3
        assert model.served.calls == 1 and spent(result)["limit"] == "seconds"

    def test_a_synchronous_agent_stops_between_calls(self) -> None:
        model = Teller(adding, pause=0.2)
        result = create_agent(model, [add], middleware=[BudgetMiddleware(Budget(seconds=0.1))]).invoke(GO)
        assert model.served.calls == 1 and spent(result)["limit"] == "seconds"


class TestCheckpoints:
    def test_a_run_that_is_resumed_goes_on_in_its_account_and_a_new_one_begins_anew(self) -> None:
        @tool
        def ask(b: int) -> str:
            """Ask a human."""
            return str(interrupt("what?"))

        def say(messages: Sequence[BaseMessage], call: int) -> AIMessage:
            return calls("ask", b=call)

        saver = InMemorySaver(serde=JsonPlusSerializer(allowed_msgpack_modules=None))
        model = Teller(say)
        answer: Any = Command(resume="that")
        for fresh in (False, True):  # the same process, and another one, that knows nothing but the checkpoint
            agent = create_agent(model, [ask], middleware=[BudgetMiddleware(Budget(calls=3))], checkpointer=saver)
            config: Any = {"configurable": {"thread_id": str(fresh)}}
            before = model.served.calls
            agent.invoke(GO, config)
            if fresh:
                agent = create_agent(model, [ask], middleware=[BudgetMiddleware(Budget(calls=3))], checkpointer=saver)
            for _ in range(2):
                assert "__interrupt__" in agent.invoke(answer, config)
            result = agent.invoke(answer, config)
            assert model.served.calls - before == 3 == spent(result)["usage"]["calls"]
            assert len(spent(result)["counters"]) == 1 + fresh
            result = agent.invoke(GO, config)
            assert spent(result)["usage"]["calls"] == 1

    @pytest.mark.parametrize("fresh", [False, True])
    def test_a_budget_for_a_thread_spans_its_runs(self, fresh: bool) -> None:
        model, saver = Teller(lambda messages, call: "hello"), InMemorySaver()

        def make() -> Any:
            guard = BudgetMiddleware(Budget(calls=3), per="thread")
            return create_agent(model, [], middleware=[guard], checkpointer=saver)

        agent = make()
        for place in range(5):
            agent = make() if fresh else agent
            result = agent.invoke(GO, THREAD)
            assert spent(result)["usage"]["calls"] == min(place + 1, 3)
        assert model.served.calls == 3 and "3 calls" in result["messages"][-1].text
        assert agent.invoke(GO, {"configurable": {"thread_id": "2"}})["messages"][-1].text == "hello"

    def test_a_fork_goes_on_in_the_account_that_it_was_forked_from(self) -> None:
        model, saver = Teller(adding), InMemorySaver()
        agent = create_agent(model, [add], middleware=[BudgetMiddleware(Budget(calls=5))], checkpointer=saver)
        for _ in agent.stream(GO, THREAD):
            if model.served.calls == 2:
                break
        old = list(agent.get_state_history(THREAD))[-2].config
        assert spent(agent.invoke(None, old))["usage"]["calls"] == 5 == model.served.calls

    def test_a_run_budget_and_a_thread_budget_side_by_side(self) -> None:
        model, saver = Teller(adding), InMemorySaver()
        guards = [
            BudgetMiddleware(Budget(calls=5), per="thread", name="thread"),
            BudgetMiddleware(Budget(calls=3)),
        ]
        agent = create_agent(model, [add], middleware=guards, checkpointer=saver)
        result = agent.invoke(GO, THREAD)
        assert spent(result)["usage"]["calls"] == 3 == spent(result, "thread")["usage"]["calls"]
        result = agent.invoke(GO, THREAD)
        assert spent(result)["usage"]["calls"] == 2 and spent(result, "thread")["usage"]["calls"] == 5
        assert "around" in result["messages"][-1].text or "5 calls" in result["messages"][-1].text

    def test_dollars_and_calls_side_by_side(self) -> None:
        dear = BudgetMiddleware(
            SharedBudget(Budget(dollars=0.02), prices=PRICES, name="dear"), prompt_bound=TextBound()
        )
        for guards in ([dear, BudgetMiddleware(Budget(calls=500))], [BudgetMiddleware(Budget(calls=500)), dear]):
            model = Teller(lambda messages, call: "x" * 180 if call > 90 else adding(messages, call), max_tokens=200)
            result = create_agent(model, [add], middleware=guards).invoke(GO, {"recursion_limit": 400})
            assert spent(result, "dear")["usage"]["dollars"] == pytest.approx(model.served.dollars)
            assert 0 < model.served.dollars <= 0.02
            assert spent(result, "dear")["limit"] == "dollars"

    @pytest.mark.parametrize("fresh", [False, True])
    def test_a_summary_does_not_end_a_run_that_a_human_interrupts(self, fresh: bool) -> None:
        model, saver = Teller(adding), InMemorySaver()

        def make() -> Any:
            inside = [
                SummarizationMiddleware(Teller(lambda m, c: "so far"), trigger=("messages", 5), keep=("messages", 2)),
                BudgetMiddleware(Budget(calls=5)),
                HumanInTheLoopMiddleware(interrupt_on={"add": True}),
            ]
            return create_agent(model, [add], middleware=inside, checkpointer=saver)

        agent, no = make(), Command(resume={"decisions": [{"type": "reject", "message": "no"}]})
        for runs in (1, 2):  # and what somebody writes begins a new one
            result = agent.invoke(GO, THREAD)
            for _ in range(9):
                agent = make() if fresh else agent
                if "__interrupt__" not in result:
                    break
                result = agent.invoke(no, THREAD)
            assert model.served.calls == 5 * runs and spent(result)["usage"]["calls"] == 5
            assert "5 calls" in result["messages"][-1].text

    def test_a_run_that_dies_in_a_summary_goes_on_in_its_account(self) -> None:
        class Killed(BaseException):
            pass

        def summary(messages: Sequence[BaseMessage], call: int) -> str:
            if not call:
                raise Killed
            return "so far"

        model, teller, saver = Teller(adding), Teller(summary), InMemorySaver()

        def make() -> Any:
            inside = SummarizationMiddleware(teller, trigger=("messages", 7), keep=("messages", 2))
            return create_agent(
                model, [add], middleware=[inside, BudgetMiddleware(Budget(calls=5))], checkpointer=saver
            )

        with pytest.raises(Killed):
            make().invoke(GO, THREAD)
        assert 0 < model.served.calls < 5
        assert spent(make().invoke(None, THREAD))["usage"]["calls"] == 5 == model.served.calls

    def test_a_result_that_is_passed_on_begins_a_new_run(self) -> None:
        agent = create_agent(Teller(lambda messages, call: "hello"), [], middleware=[BudgetMiddleware(Budget(calls=1))])
        result = agent.invoke(GO)
        again = agent.invoke({**result, "messages": [*result["messages"], HumanMessage("again")]})
        assert again["messages"][-1].text == "hello" and spent(again)["usage"]["calls"] == 1

    def test_an_account_of_another_version_is_refused(self) -> None:
        agent = create_agent(Teller(adding), [add], middleware=[BudgetMiddleware(Budget(calls=1))])
        with pytest.raises(LogError, match="version 9"):
            agent.invoke(
                {**GO, "tts_budgets": {"agent": {"version": 9, "run": "r", "begun": 0, "counters": {}, "soft": []}}}
            )
        with pytest.raises(LogError, match="no account"):
            agent.invoke({**GO, "tts_budgets": {"agent": {"soft": [], "counters": {}, "run": "r"}}})


def test_accounts_of_runs_that_are_over_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_module, "KEPT", 3)
    monkeypatch.setattr(shared_module, "IDLE", 0.0)
    guard, model = BudgetMiddleware(Budget(calls=2)), Teller(adding)
    agent = create_agent(model, [add], middleware=[guard])
    for runs in range(1, 10):
        agent.invoke(GO)
        assert model.served.calls == 2 * runs
    assert len(guard.budget._accounts) <= 4 and len(guard.budget._runs) <= 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": Budget(dollars=1)}, "needs prices"),
        ({"budget": Budget(calls=1), "at_limit": "stop"}, "at_limit='stop'"),
        ({"budget": Budget(calls=1), "per": "day"}, "per='day'"),
        ({"budget": Budget(calls=1), "output_tokens": 0}, "output_tokens=0"),
        ({"budget": Budget(calls=1, commit_tokens=9)}, "commit_tokens=9"),
        ({"budget": SharedBudget(Budget(calls=1)), "per": "run"}, "SharedBudget"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, BudgetError), match=message):
        BudgetMiddleware(**options)
