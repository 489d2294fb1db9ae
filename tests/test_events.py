"""The log's JSON: every event comes back as it was; other versions and broken events are refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.scripts import make_engine, make_task, make_verifier
from tts_agent import BestFirst, Budget, Expansion, Prefix, StopReason, Thought, Unverified, Usage, Verdict, search
from tts_agent.budget import Amounts
from tts_agent.errors import LogError
from tts_agent.events import (
    VERSION,
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
    from_json,
    log_from_json,
    log_to_json,
    to_json,
)
from tts_agent.prefix import pack_ids, unpack_ids

counts = st.integers(0, 10**6)
ids = st.lists(st.integers(0, 2**32 - 1), max_size=20).map(tuple)
usages = st.builds(Usage, counts, counts, counts, counts, counts, st.floats(0, 1e6), st.floats(0, 10))
amounts = st.builds(Amounts, counts, counts, counts, counts, counts)
json_values = st.none() | st.integers(-100, 100) | st.text(max_size=5) | st.lists(st.integers(0, 9), max_size=3)
thoughts = st.builds(
    Thought,
    id=counts,
    parent=counts,
    expansion=counts,
    ids=ids,
    text=st.text(max_size=20),
    logprob=st.none() | st.floats(-100, 0),
    finish=st.sampled_from(["stop", "length"]),
    status=st.sampled_from(["open", "complete", "solved", "dead", "invalid"]),
    action=json_values,
    key=st.none() | st.text(max_size=5),
    reason=st.text(max_size=5),
    usage=usages,
)
verdicts = st.builds(Verdict, st.floats(0, 1), st.text(max_size=5), st.text(max_size=5), usages) | st.builds(
    Unverified, st.text(max_size=5), st.text(max_size=5), usages
)
requests = st.builds(
    Expansion, counts, st.integers(1, 99), st.sampled_from(["thought", "answer"]), st.none() | st.floats(0, 2), ids
)
events = st.one_of(
    st.builds(Opened, st.text(), counts, st.builds(Prefix, ids), st.text(), st.dictionaries(st.text(), json_values)),
    st.builds(Carried, thoughts, st.none() | verdicts),
    st.builds(Granted, st.tuples(*[st.none() | counts] * 5)),
    st.builds(Planned, counts, counts, requests, counts, st.floats(0, 1e6), st.booleans()),
    st.builds(Reserved, st.integers(-1, 100), usages),
    st.builds(Sampled, thoughts),
    st.builds(Judged, counts, verdicts),
    st.builds(Merged, counts, counts),
    st.builds(Pruned, counts, st.text()),
    st.builds(Settled, st.integers(-1, 100)),
    st.builds(Cancelled, st.integers(-1, 100), usages, amounts),
    st.builds(Reissued, st.integers(0, 100), usages, amounts, st.text()),
    st.builds(Lost, st.none() | st.integers(-1, 100), amounts, st.text()),
    st.builds(Clock, st.floats(0, 1e6)),
    st.builds(Deepened, st.dictionaries(st.sampled_from(["calls", "seconds"]), counts | st.floats(0, 1e6))),
    st.builds(Stopped, st.text()),
    st.builds(Chosen, st.none() | counts, st.sampled_from(StopReason), st.none() | st.text(), st.booleans(), st.text()),
)


def _decode(ids: tuple[int, ...]) -> str:
    return "".join(chr(97 + token % 26) for token in ids)


@given(events)
def test_every_event_survives_json(event: Event) -> None:
    assert from_json(json.loads(json.dumps(to_json(event)))) == event
    assert from_json(json.loads(json.dumps(to_json(event, _decode))), _decode) == event


def plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and plain(item) for key, item in value.items())
    return all(map(plain, value)) if type(value) is list else type(value) in (str, int, float, bool, type(None))


@given(events)
def test_the_json_is_of_plain_types_only(event: Event) -> None:
    assert plain(to_json(event))


@given(ids)
def test_ids_survive_packing(ids: tuple[int, ...]) -> None:
    assert unpack_ids(pack_ids(ids)) == ids


async def test_text_that_is_the_decoding_of_its_ids_is_left_out_and_comes_back() -> None:
    engine = make_engine()
    outcome = await search(
        engine,
        make_task(engine),
        strategy=BestFirst(k=3),
        verifier=make_verifier(engine),
        budget=Budget(computed_tokens=800),
    )
    compact, full = log_to_json(outcome.log, engine.decode), log_to_json(outcome.log)
    assert not any("text" in event["thought"] for event in compact if event["kind"] == "sampled")
    assert log_from_json(compact, engine.decode) == log_from_json(full) == list(outcome.log)
    with pytest.raises(LogError, match="text of thought 1 was left out"):
        log_from_json(compact)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "dreamt"}, "unknown event kind 'dreamt'; known: opened"),
        (
            {"kind": "opened", "version": VERSION + 1},
            f"has version {VERSION + 1}; this release reads version {VERSION}",
        ),
        ({"kind": "settled"}, "event 'settled' cannot be read"),
        ({"kind": "settled", "reservation": 1, "mood": "good"}, "event 'settled' cannot be read"),
        ({"kind": "opened", "version": VERSION, "root": "%%%"}, "packed token ids '%%%' cannot be read"),
    ],
)
def test_what_is_not_an_event_is_refused(data: dict[str, object], message: str) -> None:
    with pytest.raises(LogError, match=message):
        from_json(data)
