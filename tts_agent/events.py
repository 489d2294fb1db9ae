"""The events of a search, and their JSON.

A search is an append-only list of these events. The tree, the ledger, the strategy's state and the trace are folds
over it. Ids are assigned when an expansion is planned, elapsed time is an event, so a replay samples nothing and
reads no clock.

The order of a log: `Opened`, the reservation of the commit, the `Carried` thoughts of an earlier step, `Granted`;
then for each expansion `Planned`, `Reserved`, one `Sampled` per completion with `Merged`, `Pruned` or `Judged`
after it, and `Settled`, `Cancelled` or `Lost` at its end (`Reissued` and `Reserved` before it, where an outage took a
part of it); `Chosen` last. Every durable chunk ends with `Granted`.
`Deepened` may come anywhere; after `Chosen` it opens the search again, which then ends with another `Chosen`, and
where a reviewer decides, their `Chosen` follows the strategy's: the last one counts. After `Stopped` nothing is begun.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from tts_agent.budget import NOTHING, Amounts
from tts_agent.errors import LogError
from tts_agent.prefix import Prefix, pack_ids, unpack_ids
from tts_agent.thought import Expansion, StopReason, Thought, Unverified, Verdict
from tts_agent.usage import ZERO, Usage

VERSION = 2
"""Version of the log's JSON. A reader refuses every other."""

COMMIT = -1
"""Reservation id of the tokens held back for the commit."""

KILLED = "killed"
"""Why something is lost that a killed process may have spent."""

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Opened:
    """The search begins: its root and everything that decides its course. `root_text` is for readers."""

    kind: ClassVar[str] = "opened"
    search: str
    seed: int
    root: Prefix
    strategy: str
    settings: dict[str, Any] = field(default_factory=dict)
    budget: dict[str, float] = field(default_factory=dict)
    engine: str = ""
    verifier: str = ""
    root_text: str = ""


@dataclass(frozen=True, slots=True)
class Carried:
    """A thought that an earlier planning step of the run sampled and paid for, under its new id."""

    kind: ClassVar[str] = "carried"
    thought: Thought
    verdict: Verdict | Unverified | None = None


@dataclass(frozen=True, slots=True)
class Granted:
    """Ceiling on what may be charged and reserved before the chunk after this one is durable; None = no limit.

    It counts everything since the search began, except the commit. What a killed process had spent is therefore at
    most the last durable ceiling.
    """

    kind: ClassVar[str] = "granted"
    ceiling: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Planned:
    """An expansion was admitted, trimmed to what fits; its thoughts will be `first`, `first + 1`, ...

    `at` is the virtual time, for engines that have one. A `commit` spends what was held back for it.
    """

    kind: ClassVar[str] = "planned"
    expansion: int
    first: int
    request: Expansion
    max_tokens: int
    at: float = 0.0
    commit: bool = False

    @property
    def reservation(self) -> int:
        """Id of the reservation that pays for it."""
        return COMMIT if self.commit else self.expansion


@dataclass(frozen=True, slots=True)
class Reserved:
    """The worst case of an expansion and its questions was set aside."""

    kind: ClassVar[str] = "reserved"
    reservation: int
    bound: Usage


@dataclass(frozen=True, slots=True)
class Sampled:
    """A completion arrived; its usage is charged."""

    kind: ClassVar[str] = "sampled"
    thought: Thought


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict arrived; its usage is charged."""

    kind: ClassVar[str] = "judged"
    thought: int
    verdict: Verdict | Unverified


@dataclass(frozen=True, slots=True)
class Merged:
    """`thought` is the same as the earlier thought `into`; it is neither judged nor grown."""

    kind: ClassVar[str] = "merged"
    thought: int
    into: int


@dataclass(frozen=True, slots=True)
class Pruned:
    """`thought` will not be grown."""

    kind: ClassVar[str] = "pruned"
    thought: int
    reason: str


@dataclass(frozen=True, slots=True)
class Settled:
    """An expansion is complete and judged; the rest of its reservation is given back."""

    kind: ClassVar[str] = "settled"
    reservation: int


@dataclass(frozen=True, slots=True)
class Cancelled:
    """An expansion was aborted, and the engine confirmed what its unfinished samples had used.

    `lost` is charged besides, for questions that were under way and cannot be aborted.
    """

    kind: ClassVar[str] = "cancelled"
    reservation: int
    usage: Usage = ZERO
    lost: Amounts = NOTHING


@dataclass(frozen=True, slots=True)
class Lost:
    """Work whose response never arrived is charged at its worst case.

    `reservation` is None for what a killed process may have spent under its last grant; every reservation that was
    open then, except the commit's, is closed by it.
    """

    kind: ClassVar[str] = "lost"
    reservation: int | None
    amounts: Amounts
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Reissued:
    """An outage broke an expansion off, whose rest is issued again under its ids.

    `usage` is what the engine confirmed that the rest had used, `lost` what may have been computed, at its worst case.
    The reservation is closed by it; another `Reserved` follows when the work is issued, if it can be paid once more.
    """

    kind: ClassVar[str] = "reissued"
    reservation: int
    usage: Usage = ZERO
    lost: Amounts = NOTHING
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Clock:
    """Seconds the search has run, all processes together."""

    kind: ClassVar[str] = "clock"
    seconds: float


@dataclass(frozen=True, slots=True)
class Deepened:
    """Limits of the search were raised from outside: `more` is by how much, by field of `Budget`."""

    kind: ClassVar[str] = "deepened"
    more: dict[str, float]


@dataclass(frozen=True, slots=True)
class Stopped:
    """Somebody outside wants the search to end at once, with the best answer so far; `reason` says why."""

    kind: ClassVar[str] = "stopped"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The search ended; `thought` is the end of the chosen path, None if there is no decision.

    `reason` says why it was stopped from outside, or that a reviewer decided.
    """

    kind: ClassVar[str] = "chosen"
    thought: int | None
    stop: StopReason
    limit: str | None = None
    committed: bool = False
    reason: str = ""


Event = (
    Opened
    | Carried
    | Granted
    | Planned
    | Reserved
    | Sampled
    | Judged
    | Merged
    | Pruned
    | Settled
    | Cancelled
    | Lost
    | Reissued
    | Clock
    | Deepened
    | Stopped
    | Chosen
)

_KINDS: dict[str, type[Any]] = {kind.kind: kind for kind in Event.__args__}
_WRITTEN = {kind: [(item.name, item.default) for item in fields(kind)] for kind in Event.__args__}


def to_json(event: Event, decode: Decode | None = None) -> dict[str, Any]:
    """The event as plain JSON.

    With `decode`, a thought's text is left out where it is just the decoding of its ids; `from_json` then needs the
    same function. Without, texts are written, so that the log can be read without the model.
    """
    # NOTE: the two kinds that come once for every thought are written out; the general way takes twice as long.
    if isinstance(event, Sampled):
        return {"kind": "sampled", "thought": _thought_to_json(event.thought, decode)}
    if isinstance(event, Judged):
        return {"kind": "judged", "thought": event.thought, "verdict": verdict_to_json(event.verdict)}
    data: dict[str, Any] = {"kind": event.kind}
    for name, default in _WRITTEN[type(event)]:
        value = getattr(event, name)
        if value != default:
            data[name] = _encode(value, decode)
    if isinstance(event, Opened):
        data["version"] = VERSION
    return data


_PLAIN = (int, str, float, bool, type(None))


def _encode(value: Any, decode: Decode | None) -> Any:
    if type(value) in _PLAIN:  # most values; the patterns below are slow to say so
        return value
    match value:
        case Prefix():
            return pack_ids(value.ids)
        case Usage() | Amounts():
            return value.to_json()
        case Thought():
            return _thought_to_json(value, decode)
        case Expansion():
            return {f.name: _encode(v, decode) for f in fields(value) if (v := getattr(value, f.name)) != f.default}
        case Verdict() | Unverified():
            return verdict_to_json(value)
        case StopReason():
            return value.value  # a plain string: the JSON also goes through serializers that know enums
        case tuple():
            return list(value)
    return value


def _thought_to_json(thought: Thought, decode: Decode | None) -> dict[str, Any]:
    data: dict[str, Any] = {"id": thought.id, "parent": thought.parent, "expansion": thought.expansion}
    data["ids"] = pack_ids(thought.ids)
    if decode is None or decode(thought.ids) != thought.text:
        data["text"] = thought.text
    if thought.logprob is not None:
        data["logprob"] = thought.logprob
    if thought.finish != "stop":
        data["finish"] = thought.finish
    if thought.status != "open":
        data["status"] = thought.status
    if thought.action is not None:
        data["action"] = thought.action
    if thought.reason:
        data["reason"] = thought.reason
    if thought.key is not None:
        data["key"] = thought.key
    if usage := thought.usage.to_json():
        data["usage"] = usage
    return data


def _thought_from_json(data: Mapping[str, Any], decode: Decode | None) -> Thought:
    ids = unpack_ids(data["ids"])
    if "text" not in data and decode is None:
        raise LogError(f"the text of thought {data['id']!r} was left out; read this log with the engine's decode")
    values = {**data, "ids": ids, "text": data["text"] if "text" in data else decode(ids)}  # type: ignore[misc]
    values["usage"] = Usage.from_json(data.get("usage", {}))
    return Thought(**values)


def verdict_to_json(verdict: Verdict | Unverified) -> dict[str, Any]:
    data: dict[str, Any] = {}
    if isinstance(verdict, Verdict):
        data["score"] = verdict.score
    if verdict.reason or not data:
        data["reason"] = verdict.reason
    if verdict.verifier:
        data["verifier"] = verdict.verifier
    if usage := verdict.usage.to_json():
        data["usage"] = usage
    return data


def verdict_from_json(data: Mapping[str, Any]) -> Verdict | Unverified:
    values = {**data, "usage": Usage.from_json(data.get("usage", {}))}
    return Verdict(**values) if "score" in data else Unverified(**values)


def from_json(data: Mapping[str, Any], decode: Decode | None = None) -> Event:
    """The event of `to_json`. Raises `LogError` for another version, an unknown kind or missing fields."""
    named = data.get("kind")
    kind = _KINDS.get(named) if isinstance(named, str) else None
    if kind is None:
        raise LogError(f"unknown event kind {named!r}; known: {', '.join(_KINDS)}")
    values = {name: value for name, value in data.items() if name != "kind"}
    if kind is Opened and (version := values.pop("version", None)) != VERSION:
        raise LogError(
            f"this log has version {version!r}; this release reads version {VERSION}: "
            "use the release that wrote it, or run the search again"
        )
    try:
        return kind(**{name: _decoded(kind, name, value, decode) for name, value in values.items()})  # type: ignore[no-any-return]
    except LogError:
        raise
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise LogError(f"event {kind.kind!r} cannot be read: {error}") from error


def _decoded(kind: type[Any], name: str, value: Any, decode: Decode | None) -> Any:
    if name == "root":
        return Prefix(unpack_ids(value))
    if name == "thought" and kind in (Sampled, Carried):
        return _thought_from_json(value, decode)
    if name == "verdict":
        return None if value is None else verdict_from_json(value)
    if name == "request":
        options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        return Expansion(**options)
    if name in ("usage", "bound"):
        return Usage.from_json(value)
    if name in ("amounts", "lost"):
        return Amounts(**value)
    if name == "ceiling":
        return tuple(value)
    if name == "stop":
        return StopReason(value)
    return value


def log_to_json(events: Iterable[Event], decode: Decode | None = None) -> list[dict[str, Any]]:
    return [to_json(event, decode) for event in events]


def log_from_json(data: Iterable[Mapping[str, Any]], decode: Decode | None = None) -> list[Event]:
    return [from_json(item, decode) for item in data]
