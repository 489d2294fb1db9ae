"""The driver: propose, admit, expand, verify, record.

One loop for every strategy. It is the only caller of `engine.sample` and of the verifier, and changes nothing but by
emitting events.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import lru_cache, partial, reduce
from hashlib import blake2b
from typing import Any, cast

import orjson

from tts_agent.budget import NOTHING, Amounts, Ledger, fit
from tts_agent.engines.base import Completion, Engine, Stream, sample_bound
from tts_agent.errors import BudgetError, ConfigError, EngineUnavailable, LogError, PromptError, SearchError
from tts_agent.events import (
    COMMIT,
    KILLED,
    Cancelled,
    Carried,
    Chosen,
    Clock,
    Deepened,
    Event,
    Granted,
    Judged,
    Lost,
    Merged,
    Opened,
    Planned,
    Pruned,
    Reissued,
    Reserved,
    Sampled,
    Settled,
    Stopped,
)
from tts_agent.outcome import Outcome
from tts_agent.prefix import Prefix
from tts_agent.search.base import Allowance, Strategy
from tts_agent.search.dice import dice, thought_seed
from tts_agent.search.inbox import Arrival, End, Inbox, Job, Order, Verdicts
from tts_agent.search.state import Pending, SearchState
from tts_agent.task import Task
from tts_agent.thought import Expansion, Prune, Reading, StopReason, Thought, Unverified, Verdict
from tts_agent.tree import Branch
from tts_agent.usage import ZERO, Usage
from tts_agent.verifiers.base import Verifier

FLUSH_EVENTS = 256
FLUSH_SECONDS = 0.25
KEY = 64
"""Longer keys of thoughts are kept as their digests."""
LOSSES_IN_A_ROW = 3
"""After so many expansions lost to an outage with nothing sampled between them, the outage is raised."""


class Search:
    """A running search. `chunk()` drives it and returns the next events to be made durable; `outcome()` reads it.

    `ledger` is the search's own scope; its commit reservation is held from the start. `log` resumes an earlier
    search from its durable events: what was planned and not settled is issued again under the same ids and seeds.
    `grant` is the share of each limit that may be reserved between two durable chunks; None if nothing is made
    durable. With `barrier` everything in flight ends before anything is handled, in the order of ids.

    The stages of a round can also be driven one by one, by `expand`, `verify` and `select`, in processes of their
    own: `killed=False` says that the search of `log` stopped between two stages, with nothing under way.
    """

    # More attributes than Python keeps in an object without a table of its own, and they are looked up all the time.
    __slots__ = (
        "_aborting",
        "_asked",
        "_barrier",
        "_begun",
        "_capabilities",
        "_driven",
        "_effective",
        "_failed",
        "_flush_now",
        "_grant",
        "_inbox",
        "_loop",
        "_losses",
        "_need",
        "_questions",
        "_resumes",
        "_rounds",
        "_seed",
        "_stop",
        "_streams",
        "_taken",
        "_to_ask",
        "_to_reissue",
        "_unpaid",
        "_virtual",
        "_waiting",
        "done",
        "engine",
        "ledger",
        "log",
        "state",
        "strategy",
        "task",
        "verifier",
        "whole",
    )

    def __init__(
        self,
        engine: Engine,
        task: Task,
        strategy: Strategy[Any],
        *,
        verifier: Verifier | None = None,
        ledger: Ledger | None = None,
        seed: int = 0,
        search: str = "search",
        carried: Iterable[Carried] = (),
        log: Sequence[Event] = (),
        grant: float | None = None,
        barrier: bool = False,
        killed: bool = True,
    ) -> None:
        self.engine, self.task, self.strategy, self.verifier = engine, task, strategy, verifier
        self.ledger = ledger or Ledger(name=search)
        self._capabilities = capabilities = engine.capabilities
        if not strategy.bounded and not self._limited():
            raise ConfigError(
                f"strategy {strategy.name!r} goes on until a budget stops it, and there is none; set a Budget limit"
            )
        self._check_engine(barrier)
        self._seed = seed
        self.log: list[Event] = []
        self.done = False
        self.whole = 0
        """Events of the log up to where a search that was closed in the midst of a chunk can be resumed as if it had
        only been killed: before what it did last, or before it began to end."""
        self._taken = 0  # events of the log that were handed out, or are not of this process
        self._streams: dict[int, Stream] = {}
        self._failed: dict[int, EngineUnavailable] = {}  # expansions whose stream broke
        self._questions: dict[int, list[int]] = {}  # round of questions -> thoughts it asks about
        self._rounds = 0
        self._barrier = barrier
        order: Order = "barrier" if barrier else "virtual" if capabilities.virtual_time else "arrival"
        self._inbox = Inbox(order)
        self._stop: tuple[StopReason, str | None] | None = None
        self._asked: deque[Callable[[], None]] = deque()  # from outside, maybe by other threads
        self._loop: asyncio.AbstractEventLoop | None = None  # drives it
        self._grant = grant
        self._effective: tuple[int | None, ...] | None = None
        self._need: Amounts | None = None  # the request that waits for a grant
        self._losses = 0
        self._resumes = False  # what is aborted is to be issued again
        self._flush_now = False
        self._waiting = False
        self._aborting: asyncio.Future[None] | None = None
        self._driven = False  # whether a chunk was asked for
        self._to_reissue: list[Pending] = []
        self._unpaid: str | None = None  # the unit that refused what was to be issued again
        self._to_ask: list[Pending] = []  # of which a kill took verdicts
        self._virtual = 0.0
        self.state = SearchState(strategy, self.ledger, judged=verifier is not None)
        try:
            if log := _whole_chunks(log) if killed else log:
                self._resume(log, killed)
            else:
                self._open(search, carried)
        except BaseException:
            for reservation in list(self.ledger.reservations):
                self.ledger.release(reservation)  # the scopes around must not keep what never began
            raise
        self._begun = time.monotonic() - self.state.seconds
        self.whole = len(self.log)

    # --- beginning

    def _limited(self) -> bool:
        return any(limit is not None for limit in (*self.ledger.limits(), self.ledger.seconds_left()))

    def _check_engine(self, barrier: bool) -> None:
        """Refuse what the engine cannot do before it costs anything."""
        can, name, task, strategy = self._capabilities, self.engine.name, self.task, self.strategy
        whole = can.continues or strategy.unit == "answer" or task.max_depth == 1
        if not whole and task.end_ids.isdisjoint(can.end_ids):
            raise ConfigError(
                f"engine {name!r} samples whole messages and cannot continue one, and strategy {strategy.name!r} grows "
                "thoughts; set Task.max_depth=1, or Task.end_ids to those of the engine, or sample whole answers"
            )
        if barrier and not can.seeds:
            raise ConfigError(
                f"engine {name!r} draws without seeds, so barrier=True cannot make the tree depend on the seed alone; "
                "leave it out"
            )
        if can.context is not None and len(task.root) + 1 > can.context:
            raise PromptError(
                f"the prompt has {len(task.root)} tokens, the context of engine {name!r} is {can.context}; "
                "shorten the prompt"
            )

    def _commit_tokens(self) -> int:
        tokens = self.ledger.budget.commit_tokens
        tokens = self.task.sampling(self.task.commit).max_tokens if tokens is None else tokens
        context = self.engine.capabilities.context
        return tokens if context is None else min(tokens, context - len(self.task.root))

    def _describe(self, search: str) -> Opened:
        """The event that begins this search; settings as JSON knows them."""
        return Opened(
            search=search,
            seed=self._seed,
            root=self.task.root,
            strategy=self.strategy.name,
            settings=_settings(self.strategy),
            budget=self.ledger.budget.to_json(),
            engine=self.engine.name,
            verifier=self.verifier.name if self.verifier else "",
            root_text=self.engine.decode(self.task.root.ids),
        )

    def _open(self, search: str, carried: Iterable[Carried]) -> None:
        self._emit(self._describe(search))
        if unit := self._hold_commit():
            raise BudgetError(
                f"budget {unit}: {self.ledger.room().get(unit)!r} left cannot pay for the prompt of "
                f"{len(self.task.root)} tokens and a commit of {self._commit_tokens()}; raise the limit, "
                "or set commit_tokens=0"
            )
        for event in carried:
            self._emit(event)
            if event.thought.status == "solved":
                self._stop = (StopReason.SOLVED, None)
        if self._grant is not None:
            self._wait_for_grant()  # the first chunk is only a grant

    def _hold_commit(self) -> str | None:
        """Reserve the commit, if it is wanted and not held; the unit that refuses it, if one does."""
        tokens = self._commit_tokens()
        if not tokens or COMMIT in self.ledger.reservations:
            return None
        bound = sample_bound(self._capabilities, len(self.task.root), 1, tokens)
        with self.ledger.held():
            unit = self.ledger.refuses(bound)
            if unit is None:
                self._emit(Reserved(COMMIT, bound))
        return unit

    def _resume(self, log: Sequence[Event], killed: bool) -> None:
        if not isinstance(log[0], Opened):
            raise LogError(f"a search's log begins with 'opened', not with {log[0].kind!r}")
        self._seed = log[0].seed
        mine = self._describe(log[0].search)
        for name in ("root", "strategy", "settings", "verifier", "engine"):
            then, now = getattr(log[0], name), getattr(mine, name)
            if then != now:
                moved = ", or name this engine so if it serves the same model" if name == "engine" else ""
                raise LogError(
                    f"the log is of a search with another {name}: {then!r}, not {now!r}; "
                    f"resume with what it was begun with{moved}, or start a new search"
                )
        try:
            for event in log:
                self.state.apply(event)
        except BudgetError as error:
            raise BudgetError(
                f"this log has spent more than the budget {self.ledger.budget.to_json()!r} allows; "
                f"resume with at least what it was begun with, {log[0].budget!r}"
            ) from error
        self.log.extend(log)
        self._taken = len(self.log)
        self._virtual = self.state.seconds
        if self.state.tree.chosen is not None:
            self.done = True
            return
        self._effective = self.state.ceiling
        if any(step.status == "solved" for step in self.state.tree.thoughts.values()):
            self._stop = (StopReason.SOLVED, None)
        elif self.state.stopped is not None:
            self._stop = (StopReason.CANCELLED, None)
        if not killed:
            return
        self._write_off()
        refused = self._hold_commit()
        if refused and self._planned_commit() is not None:
            self._emit(Cancelled(COMMIT))
        entries = [entry for entry in self.state.pending.values() if not entry.planned.commit]
        self._to_ask = [entry for entry in entries if entry.unjudged]
        self._issue_again(entries)

    def _write_off(self) -> None:
        """Charge all that the killed process may have spent: its last ceiling, less what durable events account for."""
        ledger, ceiling = self.ledger, self.state.ceiling
        if any(entry.planned.commit for entry in self.state.pending.values()):
            self._emit(Lost(COMMIT, ledger.reservations[COMMIT], KILLED))
        held = self._held()
        charged = ledger.committed.minus(ledger.reserved)
        if ceiling is None:
            ceiling = (None,) * len(held)
        amounts = Amounts(
            *(h if c is None else max(c - used, 0) for h, c, used in zip(held, ceiling, charged, strict=True))
        )
        self._emit(Lost(None, amounts, KILLED))

    def _held(self) -> Amounts:
        """What is reserved, the commit not counted."""
        return self.ledger.reserved.minus(self.ledger.reservations.get(COMMIT, NOTHING))

    def _prompt(self, request: Expansion) -> Prefix:
        return self.state.tree.prefix(request.parent).extend(request.append_ids)

    def _pending_bound(self, entry: Pending) -> Usage:
        """The most that the rest of a pending expansion may consume."""
        planned, missing = entry.planned, len(entry.missing)
        size = len(self._prompt(planned.request))
        return self._bound(size, missing, planned.max_tokens, questions=missing + len(entry.unjudged))

    def _issue_again(self, entries: list[Pending]) -> None:
        """Have the rest of `entries`, for which nothing is reserved now, issued when the loop goes on."""
        self._to_reissue = entries
        if self._grant is not None:
            # Only under a grant that is durable: a second kill would otherwise hide what is issued again.
            bounds = [Amounts.of(self.ledger.priced(self._pending_bound(entry))) for entry in entries]
            self._need = reduce(Amounts.plus, bounds, NOTHING)
            self._wait_for_grant()

    def _retry(self) -> None:
        """Issue again what an outage took."""
        failed = [(self.state.pending[expansion], error) for expansion, error in self._failed.items()]
        self._failed.clear()
        for entry, error in failed:
            self._emit(Reissued(entry.planned.reservation, lost=self._broken_off(entry), reason=str(error)))
        self._issue_again([entry for entry, _ in failed])

    def _broken_off(self, entry: Pending) -> Amounts:
        """The most that the missing samples of an expansion may have used; they are charged as if they had."""
        planned = entry.planned
        size, held = len(self._prompt(planned.request)), self.ledger.reservations[planned.reservation]
        bound = sample_bound(self._capabilities, size, len(entry.missing), planned.max_tokens)
        return Amounts(*map(min, held, Amounts.of(self.ledger.priced(bound))))

    def _reissue(self, entry: Pending) -> None:
        planned, missing = entry.planned, entry.missing
        bound = self._pending_bound(entry)
        with self.ledger.held():
            unit = self.ledger.refuses(bound)
            if self._stop or unit:
                self._unpaid = self._unpaid or unit
                self._emit(Cancelled(planned.reservation))
                return
            self._emit(Reserved(planned.reservation, bound))
        self._launch(planned, self._prompt(planned.request), missing)

    # --- the loop

    def _emit(self, event: Event) -> None:
        self.state.apply(event)
        self.log.append(event)

    @property
    def starved(self) -> bool:
        """Whether nothing may go on before `confirm`: what comes next is not covered by a grant known to be durable."""
        return not self.done and (self._need is not None or self._waiting)

    def confirm(self) -> None:
        """All chunks returned so far are durable: their last grant is in force."""
        self._effective = self.state.ceiling
        self._need, self._waiting = None, False

    def _wait_for_grant(self) -> None:
        self._flush_now = self._waiting = True

    # --- from outside

    def cancel(self, reason: str = "") -> None:
        """Stop at once with the best answer so far; what is under way is aborted. Any thread may call it."""
        self._ask_from_outside(partial(self._cancel, reason))

    def deepen(self, more: Mapping[str, float]) -> None:
        """Raise limits of this search's own scope by `more`, by field of `Budget`. Any thread may call it.

        A search that is done goes on with its next chunk; one that is about to end ends. Raises `BudgetError` as
        `check_deeper` does.
        """
        self.check_deeper(more)
        self._ask_from_outside(partial(self._deepen, dict(more)))

    def check_deeper(self, more: Mapping[str, float]) -> None:
        """Raise `BudgetError` if `more` names what is no limit of this search, and for a search that is solved.

        To raise nothing makes a search go on that was stopped, or whose run was given more.
        """
        budget = self.ledger.budget
        budget.raised(more)
        limits = [name for name, limit in budget.to_json().items() if limit and name != "commit_tokens"]
        if unlimited := sorted(set(more) - set(limits)):
            raise BudgetError(f"cannot raise {unlimited!r}; the search's own limits: {', '.join(limits) or 'none'}")
        if self.done and self.outcome().solved:
            raise BudgetError(f"the search is solved; raising its limits by {dict(more)!r} would find nothing more")

    def listen(self, heard: Callable[[], None]) -> None:
        """Have `heard` called for everything that arrives from the engine and the verifier, before it is handled."""
        self._inbox.heard = heard

    def choose(self, thought: int | None, reason: str) -> None:
        """Decide in the strategy's place, once the search is done: `thought` is the end of the chosen path."""
        chosen = self.state.tree.chosen
        if chosen is None or (thought is not None and thought not in self.state.tree.thoughts):
            raise SearchError(f"thought {thought!r} cannot be chosen: the search is not done, or does not have it")
        self._emit(replace(chosen, thought=thought, reason=reason))

    def _ask_from_outside(self, act: Callable[[], None]) -> None:
        self._asked.append(act)
        if self._loop is not None:
            with suppress(RuntimeError):  # a closed loop drives nothing any more
                self._loop.call_soon_threadsafe(self._inbox.wake)

    def _attend(self) -> None:
        """From now on this loop drives the search; do what was asked before."""
        self._loop = asyncio.get_running_loop()
        self._obey()

    def _obey(self) -> None:
        """Do what was asked from outside."""
        while self._asked:
            self._asked.popleft()()

    def _cancel(self, reason: str) -> None:
        if self._stop is None and not self.done:
            self._emit(Stopped(reason))
            self._stop = (StopReason.CANCELLED, None)
            self.whole = len(self.log)  # it holds for whoever goes on with a search that was closed meanwhile

    def _deepen(self, more: dict[str, float]) -> None:
        if self._stop is not None and not self.done:
            return
        self._emit(Deepened(more))
        if self.done:
            self._reopen()

    def _reopen(self) -> None:
        """Go on after the end."""
        self.done, self._stop, self._need, self._unpaid = False, None, None, None
        self._begun = time.monotonic() - self.state.seconds  # nobody counts the time between
        self._effective = self.state.ceiling
        if not self._decides(self.strategy.choose(self.state.strategy_state)):
            self._hold_commit()
        if self._grant is not None:
            self._wait_for_grant()  # what a kill would hide begins only under a grant that comes after the end

    async def chunk(self, *, max_events: int = FLUSH_EVENTS, max_seconds: float = FLUSH_SECONDS) -> list[Event]:
        """Drive the search until `max_events` new events exist, `max_seconds` passed, a grant is needed, or it is done.

        Returns the new events. The caller makes them durable and then calls `confirm`; if `starved`, before the next
        chunk.
        """
        if self._driven and self.starved:
            raise SearchError("this search waits for a grant: make its chunks durable and call confirm() first")
        self._driven = True
        self._attend()
        flush_at = time.monotonic() + max_seconds
        while not self.done and not self._flush_now:
            self._obey()
            self._recover()
            if self._stop is None:
                self._plan()
            if self._stop is not None:
                await self._finish()
                continue
            fresh = len(self.log) - self._taken
            if self.starved or fresh >= max_events or (fresh and time.monotonic() >= flush_at):
                break
            self.whole = len(self.log)
            await self._receive(max(flush_at - time.monotonic(), 0.0) if fresh else max_seconds)
        self._flush_now = False
        self._tick()
        if not self.done:
            self._emit(Granted(self._next_ceiling()))
        return self._take_fresh()

    def _recover(self, *, judge: bool = True) -> None:
        """Issue again what a kill or an outage took, an outage when nothing else is under way."""
        if self._failed and not self._inbox and self._stop is None and not self._out_of_time():
            self._retry()
        if self._waiting:
            return
        for entry in self._to_reissue:
            self._reissue(entry)
        self._to_reissue = []
        for entry in self._to_ask:
            if entry.planned.expansion in self.state.pending:  # else there was no room to go on with it
                self._verify(sorted(entry.unjudged))
        self._to_ask = []
        if judge and self._barrier and not self._inbox and self.verifier is not None and self._stop is None:
            self._verify(self._judgeable([]))  # what waited for work that cannot be paid once more

    def _tick(self) -> None:
        now = self._virtual if self._capabilities.virtual_time else time.monotonic() - self._begun
        if now > self.state.seconds and not self.done:
            self._emit(Clock(round(now, 6)))

    def _next_ceiling(self) -> tuple[int | None, ...]:
        ledger, need = self.ledger, self._need or NOTHING
        if self._grant is None:
            return (None,) * len(need)
        used = ledger.committed.minus(ledger.reservations.get(COMMIT, NOTHING))
        ceiling: list[int | None] = []
        for unit, (limit, free) in enumerate(zip(ledger.limits(), ledger.free(), strict=True)):
            share = None if limit is None else max(int(limit * self._grant), need[unit])
            ceiling.append(None if free is None or share is None else used[unit] + min(free, share))
        return tuple(ceiling)

    def _plan(self, *, finish: bool = True) -> None:
        """Ask the strategy until it wants nothing more or nothing is admitted; stop if nothing is under way then."""
        limit: str | None = None
        # Behind a barrier nothing is planned beside what is under way: a round ends before the next is proposed.
        planned = not self._out_of_time() and not (self._barrier and self._inbox)
        while planned and self._stop is None and self._need is None:
            planned = False
            rng = dice(self._seed, self.state.next_expansion)
            for proposal in self.strategy.propose(self.state.strategy_state, self._allowance(), rng):
                if isinstance(proposal, Prune):
                    self._emit(Pruned(proposal.thought, proposal.reason))
                    planned = True
                    continue
                limit = self._admit(proposal)
                if limit is not None or self._need is not None:
                    break
                planned = True
            if limit is not None:
                break
        if self._stop is None and finish and not self._inbox and self._need is None:
            self._stop_idle(limit)

    def _out_of_time(self) -> bool:
        left = self._seconds_left()
        if left is None or left > 0:
            return False
        self._stop = self._stop or (StopReason.BUDGET, "seconds")
        return True

    def _stop_idle(self, limit: str | None) -> None:
        """Stop a search with nothing under way: `limit` refused what was proposed, or nothing was."""
        limit = limit or self._unpaid
        self._stop = (StopReason.CONVERGED if limit is None else StopReason.BUDGET, limit)

    def _allowance(self) -> Allowance:
        if not self.ledger.limited:
            return Allowance(len(self.state.pending), 1.0)
        free = zip(self.ledger.free(), self.ledger.limits(), strict=True)
        shares = [left / limit for left, limit in free if left is not None and limit]
        return Allowance(len(self.state.pending), min(shares, default=1.0))

    def _bound(self, prompt: int, n: int, max_tokens: int, *, questions: int | None = None) -> Usage:
        """The most an expansion may consume, the questions about its children included."""
        price = self.ledger.priced  # part by part: a verifier's usage may come with dollars of its own
        bound = price(sample_bound(self._capabilities, prompt, n, max_tokens)) if n else ZERO
        if self.verifier is not None:
            asked = n if questions is None else questions
            bound += price(self.verifier.bound(prompt + max_tokens)).times(asked)
        return bound

    def _admit(self, request: Expansion) -> str | None:
        """Plan and launch `request`, trimmed to what fits; else the unit that refuses it. May leave `_need` set."""
        prompt = self._prompt(request)
        max_tokens = self.task.sampling(request).max_tokens
        context = self._capabilities.context
        if context is not None:
            max_tokens = min(max_tokens, context - len(prompt))
            if max_tokens < 1:
                self._emit(Pruned(request.parent, "context full"))
                return None
        size = len(prompt)
        with self.ledger.held():  # what fits is reserved before another thread can take it
            bound = self._bound(size, request.n, max_tokens)
            if self.ledger.refuses(bound) is not None:
                fits = fit(
                    lambda n, tokens: self.ledger.refuses(self._bound(size, n, tokens)) is not None,
                    request.n,
                    max_tokens,
                    least_tokens=max(1, max_tokens // 2),
                )
                if fits is None:
                    return self._refusal(request)
                if fits.n != request.n:
                    request = replace(request, n=fits.n)
                max_tokens, bound = fits.max_tokens, self._bound(size, *fits)
            if self._beyond_grant(bound):
                self._need = Amounts.of(self.ledger.priced(bound))
                return None
            planned = Planned(self.state.next_expansion, self.state.tree.next_id, request, max_tokens, self._virtual)
            self._emit(planned)
            self._emit(Reserved(planned.expansion, bound))
        self._launch(planned, prompt, list(range(request.n)))
        return None

    def _refusal(self, request: Expansion) -> str | None:
        """The unit that refuses even the smallest form of `request`."""
        size = len(self._prompt(request))
        return self.ledger.refuses(self._bound(size, 1, max(1, self.task.sampling(request).max_tokens // 2)))

    def _beyond_grant(self, bound: Usage) -> bool:
        if self._effective is None or self._grant is None:
            return False
        commit = self.ledger.reservations.get(COMMIT, NOTHING)
        after = self.ledger.committed.minus(commit).plus(Amounts.of(self.ledger.priced(bound)))
        return any(ceiling is not None and after[i] > ceiling for i, ceiling in enumerate(self._effective))

    def _launch(self, planned: Planned, prompt: Prefix, samples: list[int]) -> None:
        """Start the given samples of an expansion; completions carry their place in `samples`."""
        job = Job("sample", planned.expansion)
        if not samples:
            return
        sampling = self.task.sampling(planned.request)
        if planned.max_tokens != sampling.max_tokens:
            sampling = replace(sampling, max_tokens=planned.max_tokens)
        seeds = [thought_seed(self._seed, planned.first + index) for index in samples]
        stream = self.engine.sample(prompt, sampling, seeds=seeds, at=planned.at)
        self._streams[planned.expansion] = stream
        whole = len(samples) == planned.request.n
        self._inbox.add(job, stream if whole else _renumbered(stream, samples), planned.at)

    def _seconds_left(self) -> float | None:
        left = self.ledger.seconds_left()
        if left is None:
            return None
        now = self._virtual if self._capabilities.virtual_time else time.monotonic() - self._begun
        return left - (now - self.state.seconds)

    async def _receive(self, timeout: float | None, *, judge: bool = True) -> None:
        left = self._seconds_left()
        virtual = self._capabilities.virtual_time
        if left is not None and not virtual:
            timeout = left if timeout is None else min(timeout, left)
        horizon = self._virtual + left if left is not None and virtual else None
        at, arrivals = await self._inbox.batch(timeout if not virtual else None, horizon)
        if at is not None and at > self._virtual:
            self._virtual = at
            self._tick()
        if arrivals:
            self._handle(arrivals, judge=judge)

    # --- what arrives

    def _handle(self, arrivals: list[Arrival], *, judge: bool = True) -> None:
        """Record arrivals in order; then ask, if `judge`, about the thoughts that may be judged by now."""
        fresh: list[int] = []
        for job, item in arrivals:
            match item:
                case Completion():
                    thought = self._sampled(self.state.pending[job.number], item)
                    if thought is not None:
                        fresh.append(thought)
                case Verdicts():
                    self._questions.pop(job.number, None)
                    for number, verdict in zip(item.thoughts, item.verdicts, strict=True):
                        if self.ledger.prices is not None:
                            verdict = replace(verdict, usage=self.ledger.priced(verdict.usage))
                        self._emit(Judged(number, verdict))
                case End(error) if job.kind == "sample":
                    self._ended(job.number, error)
        if judge and self.verifier is not None and self._stop is None and not self._out_of_time():
            self._verify(self._judgeable(fresh))
        self._settle_idle()

    def _sampled(self, entry: Pending, completion: Completion) -> int | None:
        """Record a completion; its id if it is open to judgement."""
        self._losses = 0
        thought, verdict = self._read(entry.planned, completion)
        twin = self.state.tree.keys.get(thought.key) if thought.key is not None else None
        self._emit(Sampled(thought))
        if thought.status == "solved":
            self._emit(Judged(thought.id, Verdict(1.0, thought.reason or "solved", "task")))
            self._stop = self._stop or (StopReason.SOLVED, None)
        elif thought.status in ("invalid", "dead"):
            self._emit(Pruned(thought.id, thought.reason or thought.status))
        elif twin is not None:
            self._emit(Merged(thought.id, twin))
        elif verdict is not None:
            self._emit(Judged(thought.id, verdict))
        elif self.verifier is not None:
            return thought.id
        return None

    def _read(self, planned: Planned, completion: Completion) -> tuple[Thought, Verdict | Unverified | None]:
        task, request, tree = self.task, planned.request, self.state.tree
        ids = completion.ids
        ended = bool(ids) and ids[-1] in task.end_ids
        if ended:
            ids = ids[:-1]
        text = self.engine.decode(ids)
        parent = tree.thoughts.get(request.parent)
        try:
            reading = task.read(parent, text)
        except Exception as error:  # foreign code: what it cannot read is kept as invalid, and paid for
            reading = Reading("invalid", reason=f"{type(error).__name__}: {error}")
        reading = _storable(reading)
        status = reading.status
        depth = tree.depth[request.parent] + 1
        if status == "open" and (
            ended or request.unit == "answer" or (task.max_depth is not None and depth >= task.max_depth)
        ):
            status = "invalid" if reading.reason else "complete"
        thought = Thought(
            id=planned.first + completion.index,
            parent=request.parent,
            expansion=planned.expansion,
            ids=request.append_ids + ids,
            text=text,
            logprob=round(sum(completion.logprobs), 5) if completion.logprobs else None,
            finish=completion.finish,
            status=status,
            action=reading.action,
            key=_short(reading.key) if status in ("open", "complete") else None,
            reason=reading.reason,
            usage=self.ledger.priced(completion.usage),
        )
        return thought, reading.verdict

    def _ended(self, expansion: int, error: EngineUnavailable | None) -> None:
        self._streams.pop(expansion, None)
        if error is not None:
            self._failed[expansion] = error
            self._losses += 1

    def _settle_idle(self) -> None:
        """Settle the expansions that have all they will get, samples and verdicts. Raises a lasting outage."""
        for expansion, entry in list(self.state.pending.items()):
            if expansion not in self._streams and not entry.unjudged and not entry.missing:
                self._failed.pop(expansion, None)
                self._emit(Settled(entry.planned.reservation))
        if self._losses >= LOSSES_IN_A_ROW and self._failed:
            error = list(self._failed.values())[-1]
            raise self._outage(f"{self._losses} requests in a row, the last with: {error}") from error

    def _outage(self, what: str) -> EngineUnavailable:
        """The error of a search that gives up: what is under way is left to whoever resumes it."""
        self._resumes = True
        return EngineUnavailable(f"engine {self.engine.name!r} lost {what}")

    # --- questions

    def _judgeable(self, fresh: list[int]) -> list[int]:
        """Thoughts whose verdict can be asked for now, by the verifier's scope."""
        assert self.verifier is not None
        scope = self.verifier.scope
        running = self._streams.keys() | self._failed.keys()  # what failed is issued again
        if scope == "thought" and not self._barrier:
            return fresh
        if running and (scope == "tree" or self._barrier):
            return []
        asked = {number for thoughts in self._questions.values() for number in thoughts}
        ended = (entry for key, entry in self.state.pending.items() if key not in running)
        return sorted(number for entry in ended for number in entry.unjudged - asked)

    def _verify(self, thoughts: list[int]) -> None:
        """Ask the verifier about `thoughts`, in one call beside the sampling."""
        if not thoughts:
            return
        tree = self.state.tree
        branches = [tree.branch(number) for number in thoughts]
        self._rounds += 1
        self._questions[self._rounds] = thoughts
        self._inbox.add(Job("verify", self._rounds), self._ask(thoughts, branches), self._virtual)

    async def _ask(self, thoughts: list[int], branches: list[Branch]) -> AsyncIterator[Verdicts]:
        verifier = self.verifier
        assert verifier is not None
        try:
            verdicts = list(await verifier(branches))
            if [type(v) for v in verdicts if not isinstance(v, (Verdict, Unverified))] or len(verdicts) != len(
                thoughts
            ):
                raise TypeError(f"{len(thoughts)} branches were given, {verdicts!r} came back")
        except Exception as error:  # a verifier is foreign code: whatever it raises, its branches are unverified
            reason = f"{type(error).__name__}: {error}"
            verdicts = [Unverified(reason, verifier.name, verifier.bound(len(b.prefix))) for b in branches]
        yield Verdicts(thoughts, verdicts)

    # --- the stages of a round, one at a time

    def rejoin(self, events: Sequence[Event]) -> None:
        """Go on after the rest between two stages, in any loop; `events` is what others added to the log meanwhile."""
        for event in events:
            self.state.apply(event)
        self.log.extend(events)
        self._taken = self.whole = len(self.log)
        self._inbox = Inbox(self._inbox.order)  # an inbox belongs to the loop that waited for it
        self._begun = time.monotonic() - self.state.seconds  # nobody counts the time between

    def _begin_stage(self) -> bool:
        """Whether there is a round that was broken off; its work is under way again now, to be brought to its end."""
        self._attend()
        self._to_ask = []  # by the stage that asks
        broken_off = bool(self._to_reissue)
        self._recover(judge=False)
        return broken_off

    async def expand(self) -> list[Event]:
        """Sample what the strategy proposes, to the end, and judge nothing. Returns the new events."""
        if not self._begin_stage() and self._stop is None:
            self._plan(finish=False)
        await self._drain(judge=False)
        while self._failed and self._stop is None and not self._out_of_time():
            self._recover(judge=False)
            await self._drain(judge=False)
        self._tick()
        return self._take_fresh()

    async def verify(self) -> list[Event]:
        """Ask about every thought that has no verdict yet. Returns the new events."""
        self._begin_stage()
        if self._stop is None and not self._out_of_time():
            self._verify(sorted(number for entry in self.state.pending.values() for number in entry.unjudged))
        await self._drain(judge=True)
        self._settle_idle()
        self._tick()
        return self._take_fresh()

    async def select(self) -> list[Event]:
        """Prune; if the strategy then wants nothing more, or nothing fits, choose. Returns the new events."""
        self._attend()
        self._out_of_time()
        while self._stop is None:
            rng = dice(self._seed, self.state.next_expansion)
            proposals = self.strategy.propose(self.state.strategy_state, self._allowance(), rng)
            prunes = [proposal for proposal in proposals if isinstance(proposal, Prune)]
            for prune in prunes:
                self._emit(Pruned(prune.thought, prune.reason))
            if not prunes:
                limit = next((self._refusal(p) for p in proposals[:1] if isinstance(p, Expansion)), None)
                if not proposals or limit:
                    self._stop_idle(limit)
                break
        while self._stop is not None and not self.done:
            await self._finish()
        self._tick()
        return self._take_fresh()

    async def _drain(self, *, judge: bool) -> None:
        """Wait for all that is under way; when the search is to end before, abort it."""
        while self._inbox and self._stop is None and not self._out_of_time():
            self.whole = len(self.log)
            await self._receive(None, judge=judge)
            self._obey()
        if self._inbox:
            await self._abort()

    def _take_fresh(self) -> list[Event]:
        fresh = self.log[self._taken :]
        self._taken = self.whole = len(self.log)
        return fresh

    # --- the end

    async def _finish(self) -> None:
        """Abort what runs, commit if there is no decision yet, choose."""
        assert self._stop is not None
        await self._abort()
        stop, limit = self._stop
        found = self.strategy.choose(self.state.strategy_state)
        if stop is StopReason.CONVERGED and not self._decides(found):
            stop = StopReason.EXHAUSTED
        may_commit = stop in (StopReason.BUDGET, StopReason.EXHAUSTED) and limit != "seconds"
        commit = self._planned_commit()
        if commit is None and not self._decides(found) and may_commit and COMMIT in self.ledger.reservations:
            self._plan_commit()
            self.whole = len(self.log)  # whoever goes on with a search that is closed now pays for this commit
            commit = self._planned_commit()
            if self._grant is not None:
                self._wait_for_grant()  # the plan is durable before the commit is sampled
                return
        committed = await self._commit(commit) if commit is not None else None
        found = found if committed is None else committed
        if COMMIT in self.ledger.reservations:
            self._emit(Settled(COMMIT))
        self._tick()
        self._emit(Chosen(found, stop, limit, committed is not None, self.state.stopped or ""))
        self.done = True

    def _decides(self, found: int | None) -> bool:
        """Whether the path to `found` can be acted on."""
        if found is None or self.task.decision == "thought":
            return found is not None
        return self.state.tree.thoughts[found].status != "open"

    def _planned_commit(self) -> Pending | None:
        return next((entry for entry in self.state.pending.values() if entry.planned.commit), None)

    def _plan_commit(self) -> None:
        first, tokens = self.state.tree.next_id, self._commit_tokens()
        self._emit(Planned(self.state.next_expansion, first, self.task.commit, tokens, self._virtual, commit=True))

    async def _commit(self, entry: Pending) -> int | None:
        """Sample the one greedy completion that was held back for the decision. Raises an outage."""
        self._launch(entry.planned, self.task.root, entry.missing)
        while self._inbox:
            for job, item in (await self._inbox.batch(None)).arrivals:
                if isinstance(item, Completion):
                    self._sampled(entry, item)
                elif isinstance(item, End):
                    self._ended(job.number, item.error)
        if error := self._failed.get(entry.planned.expansion):
            raise self._outage(f"the completion that was held back for the decision: {error}") from error
        number = entry.planned.first
        thought = self.state.tree.thoughts.get(number)
        return number if thought is not None and thought.status not in ("invalid", "dead") else None

    async def _abort(self, *, closing: bool = False) -> None:
        """Stop every stream and question, and account for what they used; the commit too, if `closing`.

        Whoever is cancelled meanwhile waits: an engine says only once what was used.
        """
        if self._aborting is None and not self._questions and not self._underway(closing):
            return
        if self._aborting is not None:
            await asyncio.wait([self._aborting])
        self._aborting = asyncio.ensure_future(self._stop_all(closing))
        try:
            await asyncio.shield(self._aborting)
        except asyncio.CancelledError:
            await asyncio.wait([self._aborting])
            raise

    def _underway(self, closing: bool) -> dict[int, Pending]:
        """Expansions that are not settled; the commit too, if `closing`."""
        return {key: entry for key, entry in self.state.pending.items() if closing or not entry.planned.commit}

    async def _stop_all(self, closing: bool) -> None:
        asked = {number for thoughts in self._questions.values() for number in thoughts}
        for round_ in list(self._questions):
            await self._inbox.drop(Job("verify", round_))
        self._questions.clear()
        pending = self._underway(closing)
        streams = {expansion: self._streams.pop(expansion) for expansion in pending if expansion in self._streams}
        # All at once: an engine may take its time to confirm, and must not go on with the others meanwhile.
        used = await asyncio.gather(*(stream.abort() for stream in streams.values()))
        aborted = dict(zip(streams, used, strict=True))
        for expansion, entry in pending.items():
            error = self._failed.get(expansion)
            usage = await self._aborted(expansion, entry, aborted)
            reservation = entry.planned.reservation
            unfinished = bool(entry.missing or entry.unjudged)
            if usage is None:
                held = self.ledger.reservations[reservation]
                why = str(error) if error else "no answer, and no confirmed abort"
                lost = self._broken_off(entry).plus(self._question_loss(entry, asked))
                again = Reissued(reservation, lost=Amounts(*map(min, lost, held)), reason=why)
                self._emit(again if self._resumes and unfinished else Lost(reservation, held, why))
            elif unfinished:
                known = self.ledger.priced(usage), self._question_loss(entry, asked)
                again = Reissued(reservation, *known, "the engine gave up")
                self._emit(again if self._resumes else Cancelled(reservation, *known))
            else:
                self._emit(Settled(reservation))

    async def _aborted(self, expansion: int, entry: Pending, aborted: Mapping[int, Usage | None]) -> Usage | None:
        """What the unfinished samples of an expansion had used, None if nobody knows; those that did end are taken."""
        if expansion not in aborted:
            return None if self._failed.pop(expansion, None) else ZERO
        usage = aborted[expansion]
        for item in await self._inbox.close(Job("sample", expansion)):
            if isinstance(item, Completion):
                self._sampled(entry, item)
            elif isinstance(item, End) and item.error is not None:
                usage = None
        return usage

    def _question_loss(self, entry: Pending, asked: set[int]) -> Amounts:
        """Worst case of the questions about an expansion's thoughts that were under way and cannot be aborted."""
        lost = NOTHING
        for number in entry.unjudged & asked:
            assert self.verifier is not None
            bound = self.verifier.bound(len(self.state.tree.prefix(number)))
            lost = lost.plus(Amounts.of(self.ledger.priced(bound)))
        return lost

    async def aclose(self) -> None:
        """Abort everything; the account stays exact, and the log can be resumed. Harmless after the end."""
        if not self.done:
            await self._abort(closing=True)
            if COMMIT in self.ledger.reservations:
                self._emit(Settled(COMMIT))

    def left(self) -> list[Event]:
        """The log of a search that was closed, for one that goes on with it as after a kill.

        Its last grant leaves to be lost just what the engine had used of what was under way, which is planned still;
        nothing, if the engine had given up: what it had in hand is then accounted for in the log. A search that is done
        leaves its log.
        """
        if self.done:
            return list(self.log)
        used = self.ledger.committed.minus(self.ledger.reservations.get(COMMIT, NOTHING))
        return [*(self.log if self._resumes else self.log[: self.whole]), Granted(tuple(used))]

    def outcome(self) -> Outcome:
        """The result of a search that is done."""
        chosen = self.state.tree.chosen
        if chosen is None:
            raise SearchError("the search is not done; drive it with chunk() until `done`")
        path, cut = () if chosen.thought is None else self.state.tree.path(chosen.thought), []
        if chosen.limit:
            cut.append(f"stopped by the {chosen.limit} limit")
        if chosen.reason:
            cut.append(chosen.reason)
        if path and path[-1].finish == "length":
            cut.append("the chosen thought was cut at max_tokens")
        return Outcome(
            path=path,
            stop=chosen.stop,
            limit=chosen.limit,
            usage=self.ledger.spent,
            lost=self.ledger.lost.to_json(),
            excess=self.ledger.excess.to_json(),
            cut="; ".join(cut),
            tree=self.state.tree,
            log=self.log,
        )


def _whole_chunks(log: Sequence[Event]) -> Sequence[Event]:
    """The part of a log that is whole: a kill may have torn the last chunk, which ends with a grant or the choice."""
    ends = (place for place in range(len(log), 0, -1) if isinstance(log[place - 1], (Granted, Chosen)))
    return log[: next(ends, 0)]


def _short(key: str | None) -> str | None:
    """`key`, or what stands for it in the log where it is long, as the text of a thought is."""
    if key is None or len(key) <= KEY:
        return key
    return blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _settings(strategy: Strategy[Any]) -> dict[str, Any]:
    """The settings of `strategy` as JSON knows them."""
    try:
        return _settings_once(cast(Hashable, strategy))
    except TypeError:  # it holds something that has no hash
        return _settings_once.__wrapped__(strategy)


@lru_cache(64)
def _settings_once(strategy: Any) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(json.dumps(asdict(strategy)))
    return settings


def _storable(reading: Reading) -> Reading:
    """`reading`, or why its action cannot be kept by a journal: integers beyond 64 bits, or what is not JSON."""
    if reading.action is None:
        return reading
    try:
        orjson.dumps(reading.action)
    except TypeError as error:
        return Reading("invalid", reason=f"its action is no plain JSON: {error}")
    return reading


async def _renumbered(stream: Stream, samples: list[int]) -> AsyncIterator[Completion]:
    """The completions of a request under the places their samples have in the expansion."""
    async for completion in stream:
        yield completion._replace(index=samples[completion.index])
