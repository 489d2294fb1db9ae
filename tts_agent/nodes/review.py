"""A human looks at what a search found, before anything is decided.

The node interrupts the graph with a question (plain JSON)::

    {"type": "tts.review", "node": "plan", "search": "plan/1",
     "stop": "budget", "limit": "calls", "cut": "stopped by the calls limit", "solved": false,
     "chosen": 3,                       what the strategy would choose, None if there is no decision
     "candidates": [                    possible decisions, the strategy's own first, then the best
       {"choice": 3, "content": ..., "tool_calls": [{"name": ..., "args": ...}],
        "answer": ...,                  text of the best path through it
        "status": "open", "score": 0.8, "reason": ..., "verifier": ...,   of the end of that path
        "thoughts": 7, "usage": {...}}  all from it down, and what they and their verdicts cost
     ],
     "usage": {...}, "lost": {...}, "room": {"calls": 0},    of the whole search
     "answers": {"choose": [3, 1], "edit": [...], "more": ["calls"]},   what may be answered
     "error": ...}                      only if the answer before could not be used, and why

The graph goes on with ``Command(resume=answer)``, where `answer` is one of

* ``{"choose": 3}``: one of the candidates;
* ``{"edit": {"content": "...", "tool_calls": [{"name": ..., "args": {...}}]}}``: the reviewer's own decision;
* ``{"more": {"calls": 20}}``: limits of the step are raised by so much, the search goes on, and asks again at its end.
  ``{"more": {}}`` raises none: for a search that was stopped, or whose run has more (the run's budget is changed by
  the context of the `invoke` that carries the answer, see `overrides.py`).

Another answer is asked for again. Nothing that was sampled before is sampled again.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from uuid import uuid4

from langchain_core.messages import AIMessage, ToolCall

from tts_agent.budget import Budget
from tts_agent.dialect import Dialect, Request
from tts_agent.errors import BudgetError, ConfigError
from tts_agent.outcome import Outcome
from tts_agent.search import Search
from tts_agent.search.base import ranked
from tts_agent.thought import StopReason, Thought, Verdict
from tts_agent.tree import ThoughtTree
from tts_agent.usage import Usage, total_usage

CANDIDATES = 4
"""How many decisions are shown where a function says that there is something to review, and not how many."""

CHOSE = "a reviewer chose"
WROTE = "a reviewer wrote the decision"

Wanted = int | Callable[[Outcome], bool | int]
"""How many candidates a reviewer is shown, 0 for no question; or a function of the outcome that says so, True for the
usual number. It must be pure: it is called again when the graph goes on."""


class Choose(NamedTuple):
    """The path that ends in `thought` is taken."""

    thought: int


class Edit(NamedTuple):
    """`message` is the decision."""

    message: AIMessage


class More(NamedTuple):
    """The search goes on with limits raised by `limits`."""

    limits: dict[str, float]


Answer = Choose | Edit | More


def check(wanted: Wanted | None) -> None:
    """Raise `ConfigError` for what cannot be a setting of a review."""
    if wanted is None or callable(wanted):
        return
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        raise ConfigError(
            f"review={wanted!r} must be a number of candidates, at least 1, a function of the outcome, or None"
        )


def shown(wanted: Wanted | None, outcome: Outcome) -> int:
    """How many candidates of `outcome` a reviewer is to be shown; 0 if none is asked.

    Raises `ConfigError` if a function says anything else than that.
    """
    number = 0 if wanted is None else wanted(outcome) if callable(wanted) else wanted
    if not isinstance(number, int) or number < 0:
        raise ConfigError(
            f"the function review={wanted!r} returned {number!r}; it must return a number of candidates, True for "
            f"{CANDIDATES} of them, or False for no question"
        )
    return CANDIDATES if number is True else int(number)


class Review:
    """One look at a search that is done: the question, and what an answer means."""

    def __init__(self, search: Search, request: Request, dialect: Dialect, *, node: str, number: int) -> None:
        self.search, self.outcome = search, search.outcome()
        self._request, self._dialect, self._node = request, dialect, node
        self._paths = _paths(self.outcome, request, number)

    def question(self, error: str) -> dict[str, Any]:
        """The payload of the interrupt; `error` says what was wrong with the answer before."""
        outcome, opened = self.outcome, self.search.state.opened
        question = {
            "type": "tts.review",
            "node": self._node,
            "search": "" if opened is None else opened.search,
            "stop": outcome.stop.value,
            "limit": outcome.limit,
            "cut": outcome.cut,
            "solved": outcome.solved,
            "chosen": next(iter(self._paths), None) if outcome.path else None,
            "candidates": [self._candidate(choice, end) for choice, end in self._paths.items()],
            "usage": outcome.usage.to_json(),
            "lost": outcome.lost,
            "room": self.search.ledger.room(),
            "answers": self._answers(),
        }
        return question | ({"error": error} if error else {})

    def _candidate(self, choice: int, end: int) -> dict[str, Any]:
        tree = self.outcome.tree
        path = tree.path(end)
        message = self._dialect.decide(self._request.decision(path)[-1])
        verdict = tree.verdicts.get(end)
        score = verdict.score if isinstance(verdict, Verdict) else None
        below = list(path) if self._request.task.decision == "answer" else _below(tree, choice)
        return {
            "choice": choice,
            "content": message.text,
            "tool_calls": [{"name": call["name"], "args": call["args"]} for call in message.tool_calls],
            "answer": "".join(thought.text for thought in path),
            "status": path[-1].status,
            "score": score,
            "reason": verdict.reason if verdict is not None else path[-1].reason,
            "verifier": verdict.verifier if verdict is not None else "",
            "thoughts": len(below),
            "usage": _cost(tree, below).to_json(),
        }

    def _answers(self) -> dict[str, list[Any]]:
        answers: dict[str, list[Any]] = {"choose": list(self._paths), "edit": ["content", "tool_calls"]}
        if self.outcome.stop in (StopReason.BUDGET, StopReason.CANCELLED):
            limits = self.search.ledger.budget.to_json()
            answers["more"] = [name for name in limits if name != "commit_tokens"]
        return answers if self._paths else {name: answers[name] for name in answers if name != "choose"}

    def read(self, answer: Any) -> Answer:
        """What `answer` means. Raises `ConfigError`, which lists the choices, for one that cannot be used."""
        known = self._answers()
        try:
            return self._meaning(answer, known)
        except ConfigError as error:
            raise ConfigError(f"the answer {answer!r} cannot be used: {error}; {_choices(known)}") from error

    def _meaning(self, answer: Any, known: Mapping[str, list[Any]]) -> Answer:
        if not isinstance(answer, Mapping) or len(answer) != 1 or not set(answer) <= set(known):
            raise ConfigError(f"it is no object with one of the keys {', '.join(known)}")
        ((kind, value),) = answer.items()
        if kind == "edit":
            return Edit(_message(value))
        if kind == "more":
            return self._more(value)
        if isinstance(value, bool) or not isinstance(value, int) or value not in self._paths:
            raise ConfigError(f"there is no candidate {value!r}")
        return Choose(self._paths[value])

    def _more(self, value: Any) -> More:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{value!r} must map limits to how much they are raised by")
        self.search.check_deeper(value)
        return More(dict(value))


def is_more(answer: Any) -> bool:
    """Whether `answer` may have deepened a search of which nothing else is known any more."""
    if not (isinstance(answer, Mapping) and list(answer) == ["more"] and isinstance(answer["more"], Mapping)):
        return False
    try:
        return Budget().raised(answer["more"]) == Budget()
    except BudgetError:
        return False


def read_edit(answer: Any) -> AIMessage | None:
    """The decision in `answer`, if that is what it was."""
    if not (isinstance(answer, Mapping) and list(answer) == ["edit"]):
        return None
    try:
        return _message(answer["edit"])
    except ConfigError:
        return None


def _choices(known: Mapping[str, list[Any]]) -> str:
    forms = {"choose": "one of {}", "edit": "an object of {}", "more": "an object of {}, or an empty one to go on"}
    named = (f"{{{kind!r}: {forms[kind].format(', '.join(map(repr, known[kind])))}}}" for kind in known)
    return f"answer {' or '.join(named)}"


def _message(value: Any) -> AIMessage:
    """The decision that a reviewer wrote."""
    if not isinstance(value, Mapping) or not value or not set(value) <= {"content", "tool_calls"}:
        raise ConfigError(f"an edit is an object with 'content', 'tool_calls' or both, not {value!r}")
    content, calls = value.get("content", ""), value.get("tool_calls", [])
    if not isinstance(content, str) or not isinstance(calls, list) or not (content or calls):
        raise ConfigError("an edit has a text as 'content' or a list of 'tool_calls', and one of them is not empty")
    for call in calls:
        named = isinstance(call, Mapping) and set(call) == {"name", "args"}
        if not named or not isinstance(call["name"], str) or not isinstance(call["args"], Mapping):
            raise ConfigError(f"a tool call is an object with a 'name' and an object of 'args', not {call!r}")
    return AIMessage(
        content,
        tool_calls=[
            ToolCall(name=call["name"], args=dict(call["args"]), id=f"call_{uuid4().hex}", type="tool_call")
            for call in calls
        ],
    )


def _paths(outcome: Outcome, request: Request, number: int) -> dict[int, int]:
    """The ends of the best paths through the best `number` decisions, by the id of the decision; the chosen first."""
    tree, paths = outcome.tree, dict[int, int]()
    ends = [outcome.path[-1].id] if outcome.path else []
    for end in [*ends, *ranked(tree)]:
        if request.task.decision == "answer" and tree.thoughts[end].status == "open":
            continue  # a whole answer decides, and this one has no end
        decision = request.decision(tree.path(end))[-1].id
        paths.setdefault(decision, end)
        if len(paths) == number:
            break
    return paths


def _below(tree: ThoughtTree, decision: int) -> list[Thought]:
    """The thoughts from `decision` down."""
    found, waiting = [], [decision]
    while waiting:
        number = waiting.pop()
        found.append(tree.thoughts[number])
        waiting.extend(tree.children.get(number, ()))
    return found


def _cost(tree: ThoughtTree, thoughts: list[Thought]) -> Usage:
    verdicts = (tree.verdicts.get(thought.id) for thought in thoughts)
    judged = (verdict.usage for verdict in verdicts if verdict is not None)
    return total_usage([*(thought.usage for thought in thoughts), *judged])
