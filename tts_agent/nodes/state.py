"""What planning keeps in a graph's state: messages, and plain JSON of the last planning step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Annotated, Any, NotRequired

import orjson
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.channels import DeltaChannel
from langgraph.graph.message import add_messages
from typing_extensions import TypedDict  # pydantic reads no other one before Python 3.12

from tts_agent.budget import NOTHING, Amounts
from tts_agent.dialect import Decided
from tts_agent.engines.base import Engine
from tts_agent.errors import ConfigError, LogError
from tts_agent.events import Carried, Decode, Event, Sampled, from_json, log_from_json, log_to_json, to_json
from tts_agent.nodes.spent import BUDGETS, merge_budgets
from tts_agent.outcome import Outcome
from tts_agent.prefix import Prefix, pack_ids, unpack_ids
from tts_agent.thought import Thought
from tts_agent.tree import ThoughtTree
from tts_agent.usage import ZERO, Usage

VERSION = 3
"""Version of the `tts` key. Another one is refused."""

_ANEW = "set state['tts'] to {} to begin a new run"


Update = dict[str, Any]
"""What a node returns: new values for some keys of the state."""


def newest(memory: dict[str, Any], writes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Reducer of what a planning step leaves to the next: the last one counts."""
    return writes[-1] if writes else memory


class PlanState(TypedDict):
    """State of a planning agent. Any state with these keys will do; `tts_budgets` is for shared budgets alone.

    Without `tts` every planning step is the first of a run, so a `run_budget` is refused at the second one.

    `tts` is empty at first and replaced by every planning step: never more than one step is kept. Of interest to
    readers are `tts["outcome"]` (decision, stop, limit, solved, usage, lost, thoughts, cut), `tts["carried"]` (whether
    that step's search began with the subtree of the step before), `tts["step"]` and `tts["totals"]` (the run so far).
    """

    messages: Annotated[list[AnyMessage], add_messages]
    # NOTE: a plain channel would be stored anew with every super-step; this one once, when it is written.
    tts: NotRequired[Annotated[dict[str, Any], DeltaChannel(newest, snapshot_frequency=8)]]
    tts_budgets: NotRequired[Annotated[dict[str, Any], merge_budgets]]


Log = list[str]
"""A search's log as a graph's state holds it: chunks, each a JSON array of events, one from each stage."""


def read_log(log: Log, decode: Decode | None = None) -> list[Event]:
    """The events of `log`. `decode` is the engine's. Raises `LogError` for what is none."""
    try:
        chunks = [orjson.loads(chunk) for chunk in log]
    except (orjson.JSONDecodeError, TypeError) as error:
        raise LogError(f"state['search'] is no log of a search: {error}; set it to None to begin anew") from error
    if other := [chunk for chunk in chunks if not isinstance(chunk, list)]:
        raise LogError(f"state['search'] holds {other[0]!r}, no chunk of a log; set it to None to begin anew")
    return [event for chunk in chunks for event in log_from_json(chunk, decode)]


def write_chunk(events: Sequence[Event], decode: Decode | None = None) -> str:
    """A chunk of a log, texts left out where they follow from the ids."""
    return orjson.dumps(log_to_json(events, decode)).decode()


def append_or_clear(log: Log, writes: Sequence[Log | None]) -> Log:
    """Reducer of a search's log: a list of chunks is appended, None begins an empty log."""
    for write in writes:
        log = [] if write is None else [*log, *write]
    return log


class StagedState(PlanState):
    """State of a planning agent whose search is spread over nodes.

    `search` is the log of the search under way, empty between planning steps. Only what each stage adds is stored, not
    the log anew.
    """

    search: Annotated[Log, DeltaChannel(append_or_clear)]


_KEYS = ("messages", "tts", BUDGETS, "search")


def read_state(state: Any) -> Mapping[str, Any]:
    """What planning reads of a graph's state, be it a dict, a dataclass or a pydantic model.

    Raises `ConfigError` if it has no messages.
    """
    if isinstance(state, Mapping):
        found: Mapping[str, Any] = state
    else:
        found = {key: value for key in _KEYS if (value := getattr(state, key, None)) is not None}
    if not isinstance(found.get("messages"), Sequence):
        raise ConfigError(
            f"the state has no list of 'messages', but {sorted(found)!r}; plan in a graph over PlanState, or give the "
            "state of yours its keys"
        )
    return found


@dataclass(frozen=True, slots=True)
class Totals:
    """What a run has used, over all its planning steps."""

    usage: Usage = ZERO
    lost: Amounts = NOTHING

    def plus(self, outcome: Outcome) -> "Totals":
        return Totals(self.usage + outcome.usage, self.lost.plus(Amounts(**outcome.lost)))


@dataclass(frozen=True, slots=True)
class Memory:
    """What a planning step leaves to the next.

    `message` is the id of the AI message that carries the decision; if it is not the newest any more, a new run began
    or others changed the history, and what was decided is void. `subtree` is what was found below the decision. `turn`
    tells the message of a human that began the run, empty if there is none.
    """

    step: int = 0
    message: str = ""
    decided: Decided | None = None
    subtree: tuple[Carried, ...] = ()
    totals: Totals = field(default_factory=Totals)
    turn: str = ""

    @classmethod
    def read(cls, state: Mapping[str, Any], engine: Engine) -> "Memory":
        """The memory in `state`.

        Where the decision's message is gone, or another AI message came after it, what was decided is void, and the
        run's account goes on. So it is where an engine of another name decided: its ids mean nothing to `engine`.
        Where a human wrote since, a new run begins: of the run before only the decision is remembered, so that its ids
        can be extended. Where the decision's message is gone, a summary that is written as a human's counts as such.

        Raises `LogError` if another version of this package wrote it, or it is damaged.
        """
        data = state.get("tts")
        if not data:
            return cls(turn=_turn(state["messages"]))
        if not isinstance(data, Mapping):
            raise LogError(f"state['tts'] is {data!r}, no memory of a planner; {_ANEW}")
        if data.get("version") != VERSION:
            raise LogError(
                f"this state has tts version {data.get('version')!r}; this release reads version {VERSION}: {_ANEW}"
            )
        try:
            return cls._read(data, state["messages"], engine)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise LogError(f"the planner's memory in state['tts'] is damaged: {error!r}; {_ANEW}") from error

    @classmethod
    def _read(cls, data: Mapping[str, Any], messages: Sequence[AnyMessage], engine: Engine) -> "Memory":
        message, turn = _text(data, "message"), _turn(messages)
        after = list(takewhile(lambda each: getattr(each, "id", None) != message, reversed(messages)))
        decided = None
        if len(after) < len(messages):
            same_run = not any(isinstance(each, HumanMessage) for each in after)
            if "decided" in data and not any(isinstance(each, AIMessage) for each in after):
                decided = _decided(data, engine)
        else:
            same_run = turn in ("", _text(data, "turn"))
        if not same_run:
            return cls(decided=decided, turn=turn)
        return cls(
            step=_step(data["step"]),
            message=message,
            decided=decided,
            subtree=() if decided is None else _carried(data["subtree"], engine.decode),
            totals=_totals(**data["totals"]),
            turn=turn or _text(data, "turn"),
        )

    def write(self, engine: Engine) -> dict[str, Any]:
        """The memory as plain JSON, token ids packed and texts left out where they follow from the ids."""
        data: dict[str, Any] = {
            "version": VERSION,
            "step": self.step,
            "message": self.message,
            "turn": self.turn,
            "totals": {"usage": self.totals.usage.to_json(), "lost": self.totals.lost.to_json()},
        }
        if self.decided is not None:
            data["engine"] = engine.name
            data["prefix"] = pack_ids(self.decided.prefix.ids)
            data["decided"] = to_json(Sampled(self.decided.thought), engine.decode)
            data["subtree"] = log_to_json(self.subtree, engine.decode)
        return data


def _turn(messages: Sequence[AnyMessage]) -> str:
    """What tells the newest message of a human from others: its id, or its text where it has none; empty if none."""
    written = next((message for message in reversed(messages) if isinstance(message, HumanMessage)), None)
    return "" if written is None else written.id or str(written.text)


def _text(data: Mapping[str, Any], key: str) -> str:
    if not isinstance(data[key], str):
        raise LogError(f"{key} {data[key]!r} is no text")
    return str(data[key])


def _step(number: Any) -> int:
    if not isinstance(number, int) or number < 0:
        raise LogError(f"step {number!r} is no number of steps")
    return number


def _totals(usage: Mapping[str, Any], lost: Mapping[str, Any]) -> Totals:
    for name, amount in (*usage.items(), *lost.items()):
        if not isinstance(amount, int | float) or not amount >= 0:
            raise LogError(f"totals {name}={amount!r} is no amount")
    return Totals(Usage.from_json(usage), Amounts(**lost))


def _decided(data: Mapping[str, Any], engine: Engine) -> Decided | None:
    """What was decided; None if an engine of another name did."""
    if data["engine"] != engine.name:
        return None
    sampled = from_json(data["decided"], engine.decode)
    if not isinstance(sampled, Sampled):
        raise LogError(f"what was decided is {sampled.kind!r}, no thought")
    return Decided(Prefix(unpack_ids(data["prefix"])), sampled.thought)


def _carried(subtree: Any, decode: Decode) -> tuple[Carried, ...]:
    return tuple(event for event in log_from_json(subtree, decode) if isinstance(event, Carried))


def subtree(tree: ThoughtTree, decision: Thought) -> tuple[Carried, ...]:
    """What `tree` holds below `decision`, numbered anew, to be carried over to the next step."""
    return tuple(
        Carried(carry.thought._replace(id=carry.id, parent=carry.parent), carry.verdict)
        for carry in tree.subtree(decision.id)
    )


def summary(outcome: Outcome) -> dict[str, Any]:
    """The outcome as plain JSON, without the tree."""
    decision = outcome.decision
    return {
        "decision": None if decision is None else decision.text,
        "stop": outcome.stop.value,
        "limit": outcome.limit,
        "solved": outcome.solved,
        "usage": outcome.usage.to_json(),
        "lost": outcome.lost,
        "excess": outcome.excess,
        "thoughts": len(outcome.tree),
        "cut": outcome.cut,
    }


def forgets(state: Mapping[str, Any], name: str) -> bool:
    """Whether planner `name` has decided in this run, and `state` has no key that could tell what it used."""
    if "tts" in state:
        return False
    run = takewhile(lambda message: not isinstance(message, HumanMessage), reversed(state["messages"]))
    notes = (message.response_metadata.get("tts") for message in run if isinstance(message, AIMessage))
    searches = (str(note.get("search", "")) for note in notes if isinstance(note, Mapping))
    return any(search.rpartition("/")[0] == name for search in searches)


def newest_tool_calls(messages: Sequence[AnyMessage]) -> bool:
    """Whether the newest message asks for tools."""
    return bool(messages) and isinstance(messages[-1], AIMessage) and bool(messages[-1].tool_calls)
