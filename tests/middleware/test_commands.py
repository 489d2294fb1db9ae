"""Middleware inside a search updates the agent's state for the chosen candidate alone, and what was spent counts."""

import asyncio
import operator
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NotRequired

import pytest
from langchain.agents import AgentState, create_agent
from langchain.agents.middleware import AgentMiddleware, ModelFallbackMiddleware, ModelRetryMiddleware
from langchain.agents.middleware.types import ExtendedModelResponse
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langgraph.channels.untracked_value import UntrackedValue
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.types import Command, interrupt

from tests.middleware.world import Broken, Teller
from tts_agent import Budget
from tts_agent.middleware import BudgetMiddleware, Candidate, PlanSearchMiddleware
from tts_agent.middleware.commands import COLLECTED, Commands, writable
from tts_agent.nodes import SharedBudget

GO: Any = {"messages": [HumanMessage("go")]}
THREAD: Any = {"configurable": {"thread_id": "1"}}


def count(messages: Sequence[BaseMessage], call: int) -> AIMessage:
    return AIMessage(str(call), response_metadata={"call": call})


def prefer(text: str) -> Any:
    return lambda candidate: 1.0 if candidate.text == text else 0.1


class Noting(AgentState[Any]):
    note: NotRequired[str]
    notes: NotRequired[Annotated[list[str], operator.add]]


class Note(AgentMiddleware[Noting, Any, Any]):
    """Notes which call of the model it saw, as a value and in a list, in whatever form an update may have."""

    state_schema = Noting

    def __init__(self, form: type[dict[str, Any]] | type[list[Any]] = dict) -> None:
        super().__init__()
        self.form = form

    def _noted(self, response: Any) -> Any:
        seen = f"call {response.result[0].response_metadata.get('call')}"
        update = {"note": seen, "notes": [seen]}
        return ExtendedModelResponse(response, Command(update=self.form(update.items())))

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return self._noted(handler(request))

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        return self._noted(await handler(request))


class Hands(AgentMiddleware[Any, Any, Any]):
    """Has a function do the call of the model."""

    def __init__(self, call: Any) -> None:
        super().__init__()
        self.call = call

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return self.call(request, handler)

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        return await self.call(request, handler)


def retry() -> ModelRetryMiddleware:
    return ModelRetryMiddleware(max_retries=1, initial_delay=0, jitter=False)


def agent(model: Teller, *middleware: Any, saver: Any = None) -> Any:
    return create_agent(model, [], middleware=middleware, checkpointer=saver)


def invoke(agent: Any, sync: bool, start: Any = GO) -> Any:
    return agent.invoke(start, THREAD) if sync else asyncio.run(agent.ainvoke(start, THREAD))


def noted(result: Any, call: int) -> bool:
    """Whether the state was updated for this call of the model, and for no other."""
    return bool(result.get("note") == f"call {call}" and result["notes"] == [f"call {call}"])


def charged(entry: Any) -> int:
    return int(entry["usage"].get("calls", 0) + entry["lost"].get("calls", 0))


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("saver", [True, False])
@pytest.mark.parametrize("concurrency", [1, 2, 8])
@pytest.mark.parametrize("best", [0, 1, 3])
def test_the_state_is_updated_for_the_chosen_candidate(best: int, concurrency: int, saver: bool, sync: bool) -> None:
    search = PlanSearchMiddleware(4, judge=prefer(str(best)), concurrency=concurrency)
    result = invoke(agent(Teller(count), search, Note(), saver=InMemorySaver() if saver else None), sync)
    assert result["messages"][-1].text == str(best) and noted(result, best)


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("saver", [True, False])
def test_without_a_decision_it_is_updated_for_the_first_response(saver: bool, sync: bool) -> None:
    model = Teller(lambda messages, call: AIMessage("", response_metadata={"call": call}), faults={0: "raises"})
    search = PlanSearchMiddleware(3, concurrency=1)
    result = invoke(agent(model, search, Note(), saver=InMemorySaver() if saver else None), sync)
    assert result["messages"][-1].response_metadata == {"call": 1} and noted(result, 1)


@pytest.mark.parametrize("sync", [True, False])
def test_a_search_that_raises_updates_nothing(sync: bool) -> None:
    def caught(request: Any, handler: Any) -> Any:
        with pytest.raises(Broken):
            handler(request)
        return AIMessage("sorry")

    async def acaught(request: Any, handler: Any) -> Any:
        with pytest.raises(Broken):
            await handler(request)
        return AIMessage("sorry")

    model = Teller(count, faults=dict.fromkeys(range(3), "raises late"))
    middleware = [Hands(caught if sync else acaught), PlanSearchMiddleware(3), Note(), BudgetMiddleware(Budget())]
    result = invoke(agent(model, *middleware), sync)
    assert result["messages"][-1].text == "sorry"
    assert not any(result.get(key) for key in ("note", "notes", "tts_budgets"))


class TestBudgetInside:
    @pytest.mark.parametrize("sync", [True, False])
    @pytest.mark.parametrize("saver", [True, False])
    @pytest.mark.parametrize("concurrency", [1, 8])
    def test_what_the_losers_spent_counts(self, concurrency: int, saver: bool, sync: bool) -> None:
        search = PlanSearchMiddleware(4, judge=prefer("0"), concurrency=concurrency)
        guard = BudgetMiddleware(Budget(calls=9))
        result = invoke(agent(Teller(count), search, guard, saver=InMemorySaver() if saver else None), sync)
        assert result["messages"][-1].text == "0" and charged(result["tts_budgets"]["agent"]) == 4

    @pytest.mark.parametrize("sync", [True, False])
    def test_what_failed_counts_as_far_as_anybody_told(self, sync: bool) -> None:
        for failed, told in ((1, 4), (3, 3)):
            model = Teller(count, faults={failed: "raises late"})
            search = PlanSearchMiddleware(4, judge=prefer("0"), concurrency=1)
            result = invoke(agent(model, search, BudgetMiddleware(Budget(calls=9)), Note()), sync)
            assert charged(result["tts_budgets"]["agent"]) == told and noted(result, 0)

    @pytest.mark.parametrize("sync", [True, False])
    def test_the_limit_that_refused_a_loser_is_told(self, sync: bool) -> None:
        search = PlanSearchMiddleware(4, judge=prefer("0"), concurrency=1)
        result = invoke(agent(Teller(count), search, Note(), BudgetMiddleware(Budget(calls=2))), sync)
        assert result["tts_budgets"]["agent"]["limit"] == "calls" and noted(result, 0)

    @pytest.mark.parametrize("sync", [True, False])
    def test_beside_one_around(self, sync: bool) -> None:
        around, inside = BudgetMiddleware(Budget(calls=9)), BudgetMiddleware(Budget(calls=7), name="inside")
        search = PlanSearchMiddleware(4, judge=prefer("0"))
        result = invoke(agent(Teller(count), around, search, inside, Note()), sync)
        assert {name: charged(entry) for name, entry in result["tts_budgets"].items()} == {"agent": 4, "inside": 4}
        assert noted(result, 0)

    @pytest.mark.parametrize("sync", [True, False])
    @pytest.mark.parametrize("other", [True, False])
    async def test_what_was_spent_before_a_kill_is_held_against_its_limit(self, other: bool, sync: bool) -> None:
        model, saver = Teller(count, faults={3: "hangs"}), InMemorySaver()
        before, later = (SharedBudget(Budget(calls=5), name="agent") for _ in range(2))

        def made(budget: SharedBudget) -> Any:
            search = PlanSearchMiddleware(8, judge=prefer("0"), concurrency=1)
            return agent(model, search, BudgetMiddleware(budget), Note(), saver=saver)

        await killed(made(before), model, 3)
        again = made(later if other else before)
        result = await asyncio.to_thread(again.invoke, None, THREAD) if sync else await again.ainvoke(None, THREAD)
        # Nobody can tell another process of the call that was under way when its process was killed.
        assert model.served.calls == 5 + other and charged(result["tts_budgets"]["agent"]) == 5
        assert result["messages"][-1].text == "0" and noted(result, 0)


async def killed(agent: Any, model: Teller, at: int) -> None:
    """Run until the model's call of this number hangs, and no further."""
    run = asyncio.create_task(agent.ainvoke(GO, THREAD))
    while model.served.calls <= at:
        await asyncio.sleep(0.005)
    run.cancel()
    with suppress(asyncio.CancelledError):
        await run


class TestStored:
    @pytest.mark.parametrize("best", [1, 4])
    @pytest.mark.parametrize("form", [dict, list])
    @pytest.mark.parametrize("strict", [True, False])
    async def test_candidates_from_before_a_kill_and_after_it(
        self, strict: bool, form: Any, best: int, tmp_path: Path
    ) -> None:
        model = Teller(count, faults={3: "hangs"})
        async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "saved.db")) as saver:
            if strict:
                saver.serde = JsonPlusSerializer(allowed_msgpack_modules=None)
            middleware = [PlanSearchMiddleware(5, judge=prefer(str(best)), concurrency=1), Note(form)]
            await killed(agent(model, *middleware, saver=saver), model, 3)
            result = await agent(model, *middleware, saver=saver).ainvoke(None, THREAD)
        assert model.served.calls == 6 and result["messages"][-1].text == str(best) and noted(result, best)

    @pytest.mark.parametrize("sync", [True, False])
    @pytest.mark.parametrize("form", [dict, list])
    def test_a_search_that_had_ended(self, form: Any, sync: bool) -> None:
        def asking(request: Any, handler: Any) -> Any:
            response = handler(request)
            interrupt("approve?")
            return response

        async def aasking(request: Any, handler: Any) -> Any:
            response = await handler(request)
            interrupt("approve?")
            return response

        model, saver = Teller(count), InMemorySaver(serde=JsonPlusSerializer(allowed_msgpack_modules=None))

        def made() -> Any:
            search = PlanSearchMiddleware(3, judge=prefer("1"), concurrency=1)
            guard = BudgetMiddleware(Budget(calls=9))
            return agent(model, Hands(asking if sync else aasking), search, Note(form), guard, saver=saver)

        assert "__interrupt__" in invoke(made(), sync)
        result = invoke(made(), sync, Command(resume=True))
        assert model.served.calls == 3 and result["messages"][-1].text == "1" and noted(result, 1)
        assert charged(result["tts_budgets"]["agent"]) == 3

    @pytest.mark.parametrize("sync", [True, False])
    def test_what_langchain_refuses_it_refuses_of_a_stored_search_too(self, sync: bool) -> None:
        def going(request: Any, handler: Any) -> Any:
            return ExtendedModelResponse(handler(request), Command(goto="tools"))

        async def agoing(request: Any, handler: Any) -> Any:
            return ExtendedModelResponse(await handler(request), Command(goto="tools"))

        model, search = Teller(count), PlanSearchMiddleware(2, judge=prefer("1"))
        made = agent(model, search, Hands(going if sync else agoing), saver=InMemorySaver())
        for start in (GO, None):
            with pytest.raises(NotImplementedError, match="goto"):
                invoke(made, sync, start)
        assert model.served.calls == 2


class Holding(AgentState[Any]):
    held: NotRequired[Annotated[Any, UntrackedValue]]


class Hold(Note):
    """As `Note`, and holds something beside it that the agent keeps for as long as it runs."""

    state_schema = type("HoldingAndNoting", (Noting, Holding), {})  # type: ignore[assignment]

    def __init__(self, held: Any, form: type[dict[str, Any]] | type[list[Any]] = dict) -> None:
        super().__init__(form)
        self.held, self.seen = held, list[Any]()

    def _noted(self, response: Any) -> Any:
        said = super()._noted(response)
        update = {**dict(said.command.update), "held": self.held}
        return ExtendedModelResponse(said.model_response, Command(update=self.form(update.items())))

    def after_model(self, state: Any, runtime: Any) -> None:
        self.seen.append(state.get("held"))


class TestWhatNoCheckpointerCanWrite:
    @pytest.mark.parametrize("sync", [True, False])
    @pytest.mark.parametrize("form", [dict, list])
    @pytest.mark.parametrize("held", [threading.Lock(), lambda: None, object()], ids=["lock", "function", "object"])
    def test_it_reaches_the_state_of_this_process(self, held: Any, form: Any, sync: bool) -> None:
        hold, search = Hold(held, form), PlanSearchMiddleware(3, judge=prefer("1"), concurrency=1)
        result = invoke(agent(Teller(count), search, hold, saver=InMemorySaver()), sync)
        assert result["messages"][-1].text == "1" and noted(result, 1) and hold.seen == [held]

    @pytest.mark.parametrize("form", [dict, list])
    async def test_the_other_keys_outlive_a_kill(self, form: Any) -> None:
        model, saver, hold = Teller(count, faults={2: "hangs"}), InMemorySaver(), Hold(threading.Lock(), form)
        made = agent(model, PlanSearchMiddleware(4, judge=prefer("1"), concurrency=1), hold, saver=saver)
        await killed(made, model, 2)
        result = await made.ainvoke(None, THREAD)
        assert model.served.calls == 5 and noted(result, 1) and hold.seen == [None]

    def test_what_is_neither_keys_nor_pairs_is_left_out_whole(self) -> None:
        left = writable(Command(update=object(), goto="there"), JsonPlusSerializer())
        assert left == Command(goto="there")


class Inner(PlanSearchMiddleware):
    """Another search, for each candidate of one."""


class TestOtherMiddlewareInside:
    @pytest.mark.parametrize("sync", [True, False])
    def test_another_search(self, sync: bool) -> None:
        def judge(candidate: Candidate) -> float:
            return 1.0 if candidate.text == "2" else 0.1

        around, inside = PlanSearchMiddleware(3, judge=judge, concurrency=1), Inner(2, judge=judge, concurrency=1)
        result = invoke(agent(Teller(count), around, inside, BudgetMiddleware(Budget(calls=9)), Note()), sync)
        assert result["messages"][-1].text == "2" and noted(result, 2)
        assert charged(result["tts_budgets"]["agent"]) == 6

    async def test_another_search_over_a_kill(self) -> None:
        model, saver = Teller(count, faults={3: "hangs"}), InMemorySaver()
        around, inside = PlanSearchMiddleware(2, judge=prefer("1"), concurrency=1), Inner(2, judge=prefer("1"))
        made = agent(model, around, inside, Note(), saver=saver)
        await killed(made, model, 3)
        result = await made.ainvoke(None, THREAD)
        assert result["messages"][-1].text == "1" and noted(result, 1)

    @pytest.mark.parametrize("sync", [True, False])
    @pytest.mark.parametrize("other", [True, False])
    @pytest.mark.parametrize("size", [1, 2])
    async def test_what_another_search_stored_is_of_one_candidate(self, size: int, other: bool, sync: bool) -> None:
        """None is given back in the place of another, and none is charged twice."""
        killed_at, judged = 2 * size, list[str]()
        model, saver = Teller(count, faults={killed_at: "hangs"}), InMemorySaver()
        before, later = (SharedBudget(Budget(calls=30), name="agent") for _ in range(2))

        def judge(candidate: Candidate) -> float:
            judged.append(candidate.text)
            return 0.1

        def made(budget: SharedBudget) -> Any:
            around, inside = PlanSearchMiddleware(5, judge=judge, concurrency=1), Inner(size, concurrency=1)
            return agent(model, BudgetMiddleware(budget), around, inside, saver=saver)

        await killed(made(before), model, killed_at)
        again = made(later if other else before)
        result = await asyncio.to_thread(again.invoke, None, THREAD) if sync else await again.ainvoke(None, THREAD)
        assert model.served.calls == 5 * size + 1 and len(set(judged)) == len(judged) == 5
        # Nobody can tell another process of the call that was under way when its process was killed.
        assert charged(result["tts_budgets"]["agent"]) == model.served.calls - other

    @pytest.mark.parametrize("sync", [True, False])
    def test_another_search_over_an_interrupt(self, sync: bool) -> None:
        model, judged = Teller(count), list[str]()

        def ask(response: Any) -> Any:
            if response.result[0].text == "2":
                interrupt("go on?")
            return response

        async def aasking(request: Any, handler: Any) -> Any:
            return ask(await handler(request))

        def judge(candidate: Candidate) -> float:
            judged.append(candidate.text)
            return 0.1

        middleware = [PlanSearchMiddleware(5, judge=judge, concurrency=1), Inner(1)]
        asking = Hands((lambda request, handler: ask(handler(request))) if sync else aasking)
        made = agent(model, *middleware, asking, saver=InMemorySaver())
        assert "__interrupt__" in invoke(made, sync)
        result = invoke(made, sync, Command(resume=True))
        assert model.served.calls == 6 and judged == ["0", "1", "3", "4", "5"]
        assert result["messages"][-1].response_metadata["tts"]["candidates"] == 5

    @pytest.mark.parametrize("concurrency", [1, 3])
    @pytest.mark.parametrize("stored", [True, False])
    async def test_another_search_ends_with_its_agent(self, stored: bool, concurrency: int) -> None:
        """A cancelled agent leaves no call of the model running."""
        model = Teller(count, faults=dict.fromkeys(range(1, 9), "hangs"))
        budget = SharedBudget(Budget(calls=20), name="agent")
        around, inside = PlanSearchMiddleware(3, concurrency=concurrency), Inner(2, concurrency=concurrency)
        saver = InMemorySaver() if stored else None
        made = agent(model, around, inside, BudgetMiddleware(budget), saver=saver)
        await killed(made, model, 1)
        (account,) = budget._accounts.values()
        assert asyncio.all_tasks() == {asyncio.current_task()} and account.idle

    @pytest.mark.parametrize("sync", [True, False])
    @pytest.mark.parametrize("outside", [True, False])
    def test_retries(self, outside: bool, sync: bool) -> None:
        """The update is that of the try that went well."""
        model = Teller(count, faults={0: "raises", 3: "raises late"})
        inner = [Note(), retry()] if outside else [retry(), Note()]
        result = invoke(agent(model, PlanSearchMiddleware(3, judge=prefer("2"), concurrency=1), *inner), sync)
        assert model.served.calls == 5 and result["messages"][-1].text == "2" and noted(result, 2)

    @pytest.mark.parametrize("sync", [True, False])
    def test_retries_of_a_whole_search(self, sync: bool) -> None:
        model = Teller(count, faults=dict.fromkeys(range(2), "raises"))
        result = invoke(agent(model, retry(), PlanSearchMiddleware(2, judge=prefer("3")), Note()), sync)
        assert result["messages"][-1].text == "3" and noted(result, 3)

    @pytest.mark.parametrize("sync", [True, False])
    def test_a_fallback(self, sync: bool) -> None:
        model, spare = Teller(count, faults=dict.fromkeys(range(9), "raises")), Teller(count)
        search = PlanSearchMiddleware(3, judge=prefer("1"))
        result = invoke(agent(model, search, ModelFallbackMiddleware(spare), Note()), sync)
        assert spare.served.calls == 3 and result["messages"][-1].text == "1" and noted(result, 1)


class TestHandlers:
    @pytest.mark.parametrize("sync", [True, False])
    def test_those_of_langchain_have_a_list_of_commands(self, sync: bool) -> None:
        """Else the state is updated once for every candidate."""
        seen: list[Any] = []

        def see(request: Any, handler: Any) -> Any:
            seen.append(handler)
            return handler(request)

        invoke(agent(Teller(count), Hands(see), Note()), sync)
        (handler,) = seen
        assert COLLECTED in handler.__code__.co_freevars, "LangChain has renamed the list: see commands.py"
        cell = handler.__closure__[handler.__code__.co_freevars.index(COLLECTED)]
        assert [command.update["note"] for command in cell.cell_contents] == ["call 0"]

    def test_others_are_called_as_they_are(self) -> None:
        def handler(request: Any) -> Any:
            raise AssertionError

        commands = Commands(handler)
        assert commands.apart() == (handler, ())
        commands.give([Command(update={"note": "none"})])

    @pytest.mark.parametrize("sync", [True, False])
    def test_one_of_another_middleware_may_lie_between(self, sync: bool) -> None:
        search = PlanSearchMiddleware(3, judge=prefer("1"), concurrency=1)

        def through(request: Any, handler: Any) -> Any:
            return search.wrap_model_call(request, lambda attempt: handler(attempt))

        async def athrough(request: Any, handler: Any) -> Any:
            async def own(attempt: Any) -> Any:
                return await handler(attempt)

            return await search.awrap_model_call(request, own)

        result = invoke(agent(Teller(count), Hands(through if sync else athrough)), sync)
        assert result["messages"][-1].text == "1" and result["messages"][-1].response_metadata["tts"]["candidates"] == 3
