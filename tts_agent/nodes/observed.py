"""A search that is listened to.

It is made only where somebody listens, and does the same work on the same engine as any other search.
"""

from collections.abc import Sequence
from typing import Any

from tts_agent.engines.base import Engine
from tts_agent.events import Event, Planned, Reissued
from tts_agent.nodes.audience import Audience
from tts_agent.nodes.progress import Narrator
from tts_agent.nodes.runs import Runs
from tts_agent.nodes.traced import ObservedEngine, TracedVerifier
from tts_agent.search.base import Strategy
from tts_agent.search.driver import Search
from tts_agent.task import Task
from tts_agent.verifiers.base import Verifier


def open_search(
    audience: Audience | None, engine: Engine, task: Task, strategy: Strategy[Any], **settings: Any
) -> Search:
    """`Search(engine, task, strategy, **settings)` before `audience`."""
    if audience is None:
        return Search(engine, task, strategy, **settings)
    return ObservedSearch(audience, engine, task, strategy, **settings)


class ObservedSearch(Search):
    """A search that tells its audience what it does, as it does it. For its arguments see `Search`."""

    def __init__(
        self,
        audience: Audience,
        engine: Engine,
        task: Task,
        strategy: Strategy[Any],
        *,
        verifier: Verifier | None = None,
        search: str = "search",
        log: Sequence[Event] = (),
        **settings: Any,
    ) -> None:
        self._narrator: Narrator | None = None
        self._unseen = verifier  # as it was given
        self._watched = ObservedEngine(engine, self._heard_tokens if audience.candidates else None)
        self._told = False  # whether the search has begun to tell
        runs = self._watched.runs = audience.runs(search)
        super().__init__(self._watched, task, strategy, verifier=self._seen(runs), search=search, log=log, **settings)
        self._watched.tree = self.state.tree
        for event in self.log:
            self._expect(event)
        if audience.tell is not None:
            self._narrator = audience.narrator(self._name, decision=task.decision)
            self._narrator.attend(self.state.tree, self.ledger)
            self._catch_up(self._narrator, log, audience.told)
        self._told = True

    @property
    def _name(self) -> str:
        assert self.state.opened is not None
        return self.state.opened.search

    def _seen(self, runs: Runs | None) -> Verifier | None:
        """The verifier as `runs` trace it."""
        return self._unseen if runs is None or self._unseen is None else TracedVerifier(self._unseen, runs)

    def face(self, audience: Audience) -> None:
        """Go on before another audience, when nothing is under way: what is in the log by now has been told."""
        runs = self._watched.runs = audience.runs(self._name)
        self.verifier = self._seen(runs)
        if audience.tell is None:
            self._narrator = None
        elif self._narrator is not None:
            self._narrator.move(audience.tell, audience.about(self._name))
        else:
            self._narrator = audience.narrator(self._name, decision=self.task.decision)
            self._narrator.attend(self.state.tree, self.ledger)
            self._narrator.skip(self.log)

    def rejoin(self, events: Sequence[Event]) -> None:
        """See `Search.rejoin`. What others added is told as any event."""
        known = len(self.log)
        super().rejoin(events)
        if self._narrator is not None:
            for event in self.log[known:]:
                self._narrator.hear(event)

    def _catch_up(self, narrator: Narrator, log: Sequence[Event], told: int | None) -> None:
        """Tell what is in the log by now: as new what this search wrote, which `log` does not hold, or nobody told."""
        if told is None:
            kept = sum(ours is theirs for ours, theirs in zip(self.log, log, strict=False))
            narrator.replay(self.log[narrator.at : kept])
        else:
            narrator.skip(self.log[narrator.at : told])
        for event in self.log[narrator.at :]:
            narrator.hear(event)

    def _emit(self, event: Event) -> None:
        super()._emit(event)
        if self._told:
            self._expect(event)
            if self._narrator is not None:
                self._narrator.hear(event)

    def _expect(self, event: Event) -> None:
        match event:
            case Planned():
                self._watched.plan(event, self._seed)
            case Reissued(reservation):
                for entry in self.state.pending.values():
                    if entry.planned.reservation == reservation:
                        self._watched.plan(entry.planned, self._seed)

    def _heard_tokens(self, branch: int, parent: int, text: str) -> None:
        if self._narrator is not None:
            self._narrator.tokens(branch, parent, text)
