"""Any order of requests, steps, aborts and evictions gives the answers of a plain model and loses no slot.

The scheduler is driven by hand, one step at a time, so that a failing order is found again and made short.
"""

import asyncio
import random
from functools import cache, partial

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests import models
from tests.engines.oracle import Oracle
from tts_agent import Prefix, Sampling
from tts_agent.engines import Completion, HiddenState, LabelScores
from tts_agent.engines.base import Capabilities, question_bound, sample_bound
from tts_agent.engines.embedded.loading import load_model
from tts_agent.engines.embedded.radix import Node
from tts_agent.engines.embedded.request import Mailbox, Message, Question, Request, Sample
from tts_agent.engines.embedded.scheduler import Scheduler
from tts_agent.usage import Usage, total_usage

LOOP = asyncio.new_event_loop()  # of mailboxes that are read at once; never run
LOOP.close()
CAP = 60
CAPABILITIES = Capabilities(shares_prompt=True)

few = st.integers(0, 3)
prompts = st.tuples(st.sampled_from((1, 2, 9, 17)), few).map(
    lambda drawn: tuple(random.Random(drawn[1]).randrange(700) for _ in range(drawn[0]))
)
samplings = st.builds(
    Sampling,
    max_tokens=st.integers(1, 7),
    temperature=st.sampled_from((0.0, 0.8, 1.0)),
    top_k=st.sampled_from((0, 3)),
    min_p=st.sampled_from((0.0, 0.2)),
    frequency_penalty=st.sampled_from((0.0, 1.5)),
    repetition_penalty=st.sampled_from((1.0, 1.3)),
    stop_ids=st.sampled_from(((), tuple(range(0, 700, 5)))),
)
labels = st.lists(st.lists(few, min_size=1, max_size=4).map(tuple), min_size=1, max_size=4).map(tuple)

oracle = cache(lambda: Oracle.of(models.qwen()))
model = cache(lambda: load_model(models.qwen()))


def slots_below(node: Node) -> list[int]:
    """Slots of the tokens from `node` down."""
    return [*node.slots.tolist(), *(slot for child in node.children.values() for slot in slots_below(child))]


class Machine(RuleBasedStateMachine):
    """Everything that is asked of a scheduler; each answer is compared the moment it comes."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(model(), cache_tokens=CAP, max_branches=7, step_tokens=8)
        self.live: list[Request] = []
        self.grown: list[tuple[int, ...]] = []  # ids of branches that ended
        self.usages: list[Usage] = []
        self.spent: dict[int, list[Usage]] = {}  # by request

    @rule(ids=prompts, sampling=samplings, seeds=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5))
    def sample(self, ids: tuple[int, ...], sampling: Sampling, seeds: list[int]) -> None:
        self._sample(ids, sampling, seeds)

    @precondition(lambda self: self.grown)
    @rule(data=st.data(), sampling=samplings, cut=few, seeds=st.lists(st.integers(0, 9), min_size=1, max_size=3))
    def continue_a_branch(self, data: st.DataObject, sampling: Sampling, cut: int, seeds: list[int]) -> None:
        ids = data.draw(st.sampled_from(self.grown))
        self._sample(ids[: max(1, len(ids) - cut)], sampling, seeds)

    def _sample(self, ids: tuple[int, ...], sampling: Sampling, seeds: list[int]) -> None:
        if len(ids) + sampling.max_tokens <= CAP:
            request = Sample(ids, Mailbox(LOOP, lambda message: None), sampling=sampling, seeds=tuple(seeds))
            request.mailbox = Mailbox(LOOP, partial(self._completed, request))
            self._submit(request)

    @precondition(lambda self: self.grown)
    @rule(data=st.data(), suffix=st.lists(few, max_size=4).map(tuple), labels=labels)
    def ask(self, data: st.DataObject, suffix: tuple[int, ...], labels: tuple[tuple[int, ...], ...]) -> None:
        ids = data.draw(st.sampled_from(self.grown))
        request = Question(ids, Mailbox(LOOP, lambda message: None), suffix=suffix, labels=labels)
        if len(ids) + request.room <= CAP:
            request.mailbox = Mailbox(LOOP, partial(self._answered, request))
            self._submit(request)

    @precondition(lambda self: self.grown)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        ids = data.draw(st.sampled_from(self.grown))
        request = Question(ids, Mailbox(LOOP, lambda message: None), suffix=(), labels=(), reads=True)
        request.mailbox = Mailbox(LOOP, partial(self._shown, request))
        self._submit(request)

    def _submit(self, request: Request) -> None:
        self.live.append(request)
        self.spent[id(request)] = []
        self.scheduler.submit(request)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        usage = self.scheduler.abort(request)
        self._spend(request, usage)
        assert self.scheduler.abort(request) == Usage(), "it has nothing more to give"

    @rule(steps=st.integers(1, 6))
    def run(self, steps: int) -> None:
        for _ in range(steps):
            if self.scheduler.busy:
                self.scheduler.step()
                self._read()

    @rule()
    def flush(self) -> None:
        before = self.scheduler.counters.in_use
        self.scheduler.flush(Mailbox(LOOP, lambda message: None))
        self._read()
        assert self.scheduler.counters.in_use == before

    def _read(self) -> None:
        for mailbox, message in self.scheduler.outbox:
            mailbox.receive(message)
        self.scheduler.outbox.clear()

    def _completed(self, request: Sample, message: Message) -> None:
        assert isinstance(message, Completion)
        prefix = Prefix(request.ids)
        oracle().check(prefix, message, request.seeds[message.index], request.sampling)
        assert message.usage.prompt == len(prefix)
        self.grown.append(prefix.ids + message.ids)
        self._spend(request, message.usage)
        if len(self.spent[id(request)]) == len(request.seeds):
            self.live.remove(request)

    def _answered(self, request: Question, message: Message) -> None:
        assert isinstance(message, LabelScores)
        expected = [oracle().label(request.ids + request.suffix, label) for label in request.labels]
        assert list(message.logprobs) == pytest.approx(expected, abs=3e-4)
        self._spend(request, message.usage)
        self.live.remove(request)

    def _shown(self, request: Question, message: Message) -> None:
        assert isinstance(message, HiddenState)
        expected = oracle().hidden(request.ids)
        assert list(message.values) == pytest.approx(expected, abs=1e-3)
        self._spend(request, message.usage)
        self.live.remove(request)

    def _spend(self, request: Request, usage: Usage) -> None:
        self.usages.append(usage)
        self.spent[id(request)].append(usage)
        size = len(request.ids)
        if isinstance(request, Sample):
            bound = sample_bound(CAPABILITIES, size, len(request.seeds), request.sampling.max_tokens)
        else:
            bound = question_bound(size, len(request.suffix), request.labels)
        spent = total_usage(self.spent[id(request)])
        assert spent.computed <= bound.computed and spent.total <= bound.total

    @invariant()
    def every_slot_has_one_owner(self) -> None:
        scheduler = self.scheduler
        running = sum(branch.run for request in self.live if isinstance(request, Sample) for branch in request.branches)
        assert scheduler.pool.free + scheduler.tree.resident + running == CAP
        owned = slots_below(scheduler.tree.root)
        assert len(owned) == len(set(owned)) == scheduler.tree.resident

    def teardown(self) -> None:
        while self.scheduler.busy:
            self.scheduler.step()
            self._read()
        assert not self.live
        counters, total = self.scheduler.counters, total_usage(self.usages)
        assert counters.in_use == 0 and self.scheduler._promised == 0 and not self.scheduler._computing
        assert (total.computed, total.generated) == (counters.computed, counters.generated)
        assert (total.prompt_cached, total.calls) == (counters.cached, counters.requests)


class TestInterleavings(Machine.TestCase):
    settings = settings(max_examples=30, stateful_step_count=40, deadline=None)


@pytest.mark.verify
class TestManyInterleavings(Machine.TestCase):
    settings = settings(max_examples=800, stateful_step_count=60, deadline=None)
