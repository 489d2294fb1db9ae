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
from tts_agent.errors import ConfigError, LogError
from tts_agent.events import Carried, Decode, Event, Sampled, from_json, log_from_json, log_to_json, to_json
from tts_agent.nodes.spent import BUDGETS, merge_budgets
from tts_agent.outcome import Outcome
from tts_agent.prefix import Prefix, pack_ids, unpack_ids
from tts_agent.thought import Thought
from tts_agent.tree import ThoughtTree
from tts_agent.usage import ZERO, Usage

VERSION = 2
"""Version of the `tts` key. Another one is refused."""


Update = dict[str, Any]
"""What a node returns: new values for some keys of the state."""


def newest(memory: dict[str, Any], writes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Reducer of what a planning step leaves to the next: the last one counts."""
    return writes[-1] if writes else memory


class PlanState(TypedDict):
    """State of a planning agent. Any state with these keys will do; `tts_budgets` is for shared budgets alone.

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
    or others changed the history, and the memory is void. `subtree` is what was found below the decision.
    """

    step: int = 0
    message: str = ""
    decided: Decided | None = None
    subtree: tuple[Carried, ...] = ()
    totals: Totals = field(default_factory=Totals)

    @classmethod
    def read(cls, state: Mapping[str, Any], decode: Decode) -> "Memory":
        """The memory in `state`; an empty one where its message is gone.

        Where another AI message came after ours, what was decided is void, and the run's account goes on. Where a
        human wrote after it a new run begins: of the run before only the decision is remembered, so that its ids can
        be extended.

        Raises `LogError` if another version of this package wrote it, or it is damaged.
        """
        try:
            return cls._read(state, decode)
        except (KeyError, TypeError) as error:
            raise LogError(
                f"the planner's memory in state['tts'] is damaged: {error!r}; remove it to begin a new run"
            ) from error

    @classmethod
    def _read(cls, state: Mapping[str, Any], decode: Decode) -> "Memory":
        data = state.get("tts")
        if not data:
            return cls()
        if data.get("version") != VERSION:
            raise LogError(f"this state has tts version {data.get('version')!r}; this release reads version {VERSION}")
        after = list(takewhile(lambda message: message.id != data["message"], reversed(state["messages"])))
        if len(after) == len(state["messages"]):
            return cls()
        same_run = not any(isinstance(message, HumanMessage) for message in after)
        decided = None
        if "decided" in data and not any(isinstance(message, AIMessage) for message in after):
            sampled = from_json(data["decided"], decode)
            assert isinstance(sampled, Sampled)
            decided = Decided(Prefix(unpack_ids(data["prefix"])), sampled.thought)
        if not same_run:
            return cls(decided=decided)
        totals = Totals(Usage.from_json(data["totals"].get("usage", {})), Amounts(**data["totals"].get("lost", {})))
        if decided is None:
            return cls(step=data["step"], message=data["message"], totals=totals)
        carried = log_from_json(data["subtree"], decode)
        return cls(
            step=data["step"],
            message=data["message"],
            decided=decided,
            subtree=tuple(event for event in carried if isinstance(event, Carried)),
            totals=totals,
        )

    def write(self, decode: Decode) -> dict[str, Any]:
        """The memory as plain JSON, token ids packed and texts left out where they follow from the ids."""
        data: dict[str, Any] = {
            "version": VERSION,
            "step": self.step,
            "message": self.message,
            "totals": {"usage": self.totals.usage.to_json(), "lost": self.totals.lost.to_json()},
        }
        if self.decided is not None:
            data["prefix"] = pack_ids(self.decided.prefix.ids)
            data["decided"] = to_json(Sampled(self.decided.thought), decode)
            data["subtree"] = log_to_json(self.subtree, decode)
        return data


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


def newest_tool_calls(messages: Sequence[AnyMessage]) -> bool:
    """Whether the newest message asks for tools."""
    return bool(messages) and isinstance(messages[-1], AIMessage) and bool(messages[-1].tool_calls)
