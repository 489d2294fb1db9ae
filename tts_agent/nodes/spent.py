"""What a run has spent, as a graph's state holds it.

Under the key `tts_budgets` each shared budget has an entry, and in it one counter for each process that worked on the
run. Counters only grow, and two values of one counter merge to the larger: branches, sub-graphs and repeated writes may
bring the same spending as often as they like, and it counts once.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

from langchain_core.messages import AIMessage, SystemMessage, ToolMessage

from tts_agent.budget import NOTHING, Amounts
from tts_agent.errors import ConfigError, LogError
from tts_agent.usage import ZERO, Usage

BUDGETS = "tts_budgets"
"""The state's key for what shared budgets have spent; its reducer is `merge_budgets`."""

VERSION = 1
"""Version of an entry under that key. Another one is refused."""

Entry = dict[str, Any]
"""What the state holds of one budget, plain JSON: `usage` and `lost` of its run so far (`lost` in the units of
`Amounts`), its limits (`budget`), the `limit` that refused something, why it is `soft`, the counters behind it, and the
messages that it works on (`turns`, by the nodes around the graph that has them)."""

NOBODY = ""
"""The turn of messages that nobody wrote: what somebody did write was summarized or removed."""


class Counter(NamedTuple):
    """What was used, and what was charged for responses that never arrived."""

    usage: Usage = ZERO
    lost: Amounts = NOTHING

    @classmethod
    def total(cls, counters: Iterable[Any]) -> Self:
        """The sum of counters as the state holds them. Raises `LogError` for what is none."""
        usage, lost = ZERO, NOTHING
        try:
            for counter in counters:
                usage += Usage.from_json(counter["usage"])
                lost = lost.plus(Amounts(**counter["lost"]))
        except (KeyError, TypeError, ConfigError) as error:
            raise LogError(f"a counter in state[{BUDGETS!r}] is damaged: {error!r}; remove the key") from error
        return cls(usage, lost)

    def larger(self, other: "Counter") -> "Counter":
        """The larger of two values of each unit."""
        usage = Usage(*map(max, self.usage, other.usage))  # type: ignore[arg-type]
        return Counter(usage, Amounts(*map(max, self.lost, other.lost)))

    def less(self, other: "Counter") -> "Counter":
        """The difference, nothing below zero."""
        rest = (max(a - b, 0) for a, b in zip(self.usage, other.usage, strict=True))
        return Counter(Usage(*rest), self.lost.minus(other.lost))  # type: ignore[arg-type]

    def to_json(self) -> dict[str, Any]:
        return {"usage": self.usage.to_json(), "lost": self.lost.to_json()}


def read_entry(state: Any, name: str) -> Entry | None:
    """What `state` holds of the budget `name`. Raises `LogError` if it is of another version, or damaged."""
    budgets = state.get(BUDGETS) if isinstance(state, Mapping) else getattr(state, BUDGETS, None)
    if not budgets or name not in budgets:
        return None
    entry = budgets[name]
    if not isinstance(entry, dict) or not {"version", "run", "begun", "counters"} <= set(entry):
        raise LogError(f"state[{BUDGETS!r}][{name!r}] is {entry!r}, no account; remove the key to begin a new one")
    if entry["version"] != VERSION:
        raise LogError(
            f"state[{BUDGETS!r}][{name!r}] has version {entry['version']!r}; this release reads version {VERSION}"
        )
    return entry


def messages_of(state: Any) -> Any:
    """What `state` has under its key `messages`; None without one."""
    return state.get("messages") if isinstance(state, Mapping) else getattr(state, "messages", None)


def newest_turn(messages: Any) -> str | None:
    """The id of the newest of `messages` that somebody wrote: no model, no tool, no program.

    `NOBODY` if there is none among them, None if that cannot be told: it has no id, or there are no messages.
    """
    if not isinstance(messages, Sequence) or not messages:
        return None
    written = next((message for message in reversed(messages) if _is_written(message)), None)
    return NOBODY if written is None else getattr(written, "id", None) or None


def _is_written(message: Any) -> bool:
    if isinstance(message, (AIMessage, ToolMessage, SystemMessage)):
        return False
    # NOTE: `SummarizationMiddleware` of LangChain puts a message of a human in the place of what it summarizes.
    return getattr(message, "additional_kwargs", {}).get("lc_source") != "summarization"


def merge_budgets(left: dict[str, Entry] | None, right: dict[str, Entry] | None) -> dict[str, Entry]:
    """Reducer of the key `tts_budgets`: of each budget the newest run, and of its counters the largest values."""
    merged = dict(left or {})
    for name, entry in (right or {}).items():
        merged[name] = _merge(merged.get(name), entry)
    return merged


def _merge(old: Entry | None, new: Entry) -> Entry:
    if old is None or old["run"] != new["run"]:
        return old if old is not None and old["begun"] > new["begun"] else new
    counters = dict(new["counters"])
    for name, counter in old["counters"].items():
        both = Counter.total([counter]).larger(Counter.total([counters[name]])) if name in counters else None
        counters[name] = counter if both is None else both.to_json()
    total = Counter.total(counters.values())
    turns, soft = {**old.get("turns", {}), **new.get("turns", {})}, sorted({*new["soft"], *old["soft"]})
    return {**new, "turns": turns, "soft": soft, "counters": counters, **total.to_json()}
