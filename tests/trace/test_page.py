"""The page of a trace: every thought with its standing, well-formed whatever a model wrote, nothing from outside."""

import asyncio
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scripts import NEWLINE, make_engine, make_task
from tests.trace.searches import log_of, run
from tts_agent import Beam, BestFirst, BestOfN, Budget, Outcome, Prefix, Reading, Sampling, ScriptedEngine, Task, search
from tts_agent.events import Carried, Planned
from tts_agent.trace import Log, page

EMPTY = {"meta", "circle", "line", "polyline", "path"}
"""Elements that are never closed by a tag of their own here."""


class Parsed(HTMLParser):
    """A page that was read strictly: every element that begins ends, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.tags: set[str] = set()
        self.words = ""
        self.deepest = 0
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            assert not name.startswith("on") and name not in ("src", "srcset")
            if name == "id" and value is not None:
                self.ids.append(value)
            if name == "href" and value is not None:
                assert value.startswith("#")
                self.targets.append(value[1:])
        if tag == "circle" or tag not in EMPTY:
            self._open.append(tag)
            self.deepest = max(self.deepest, len(self._open))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in EMPTY

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data

    def error(self, message: str) -> None:
        raise AssertionError(message)


def parsed(*logs: Log, **options: Any) -> Parsed:
    return Parsed(page(logs, **options))


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    return asyncio.run(run(BestFirst(k=4, parallel=2)))


STRATEGIES = (BestFirst(k=4), Beam(k=4, keep=2, depth=4), BestOfN(n=8), BestOfN(n=4, unit="thought"))


@given(st.sampled_from(STRATEGIES), st.integers(0, 99), st.integers(150, 2500), st.booleans(), st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_any_part_of_any_search_is_a_page(strategy: Any, seed: int, limit: int, solvable: bool, part: float) -> None:
    outcome = asyncio.run(run(strategy, seed, limit, solvable))
    read = parsed(log_of(outcome), Log("cut", tuple(outcome.log[: 1 + int(part * len(outcome.log))]), "it was killed"))
    assert {f"s1t{number}" for number in outcome.tree.thoughts} <= set(read.ids)
    assert len(read.ids) == len(set(read.ids)) and set(read.targets) <= set(read.ids)
    assert "it was killed" in read.words and not read.tags & {"script", "link", "img", "iframe"}


def test_every_thought_has_its_standing(outcome: Outcome) -> None:
    text = page([log_of(outcome)])
    rows = dict(re.findall(r'id="s1t(\d+)"[^>]*>(.*?)(?=<div class="leaf"|<details|</details>|</section>)', text, re.S))
    assert {int(number) for number in rows} == set(outcome.tree.thoughts)
    chosen = {thought.id for thought in outcome.path}
    for number, thought in outcome.tree.thoughts.items():
        row = rows[str(number)]
        assert thought.text.strip() in row and ('class="text chosen"' in row) == (number in chosen)
        verdict = outcome.tree.verdicts.get(number)
        assert verdict is None or f">{verdict.score:.2f}</b>" in row  # type: ignore[union-attr]
        if number in outcome.tree.merged:
            assert f'same as <a href="#s1t{outcome.tree.merged[number]}"' in row
        usage = thought.usage if verdict is None else thought.usage + verdict.usage
        assert f"{usage.computed:,} / {usage.prompt_cached:,} / {usage.generated:,}" in row


def test_it_says_what_was_asked_what_was_decided_and_what_it_cost(outcome: Outcome) -> None:
    words = parsed(log_of(outcome)).words
    assert "best_first(k=4, discount=0.5, parallel=2" in words and "computed_tokens 2,500" in words
    assert f"solved; chose #{outcome.path[-1].id}" in words and outcome.answer.strip() in words
    shares = re.findall(r"(chosen path|other branches|given up|illegal or dead|verdicts|lost) ([\d,]+) \(", words)
    assert sum(int(tokens.replace(",", "")) for _, tokens in shares) == outcome.usage.computed
    assert f"{outcome.usage.computed:,} computed tokens of 2,500" in words


def test_the_best_answer_gets_to_1_where_the_search_solved_and_where_it_did(outcome: Outcome) -> None:
    titles = re.findall(r"<title>#(\d+) after ([\d,]+) computed tokens: ([\d.]+)</title>", page([log_of(outcome)]))
    spent = [int(tokens.replace(",", "")) for _, tokens, _ in titles]
    assert spent == sorted(spent) and spent[-1] <= outcome.usage.computed
    number, _, value = titles[-1]
    assert (int(number), value) == (outcome.path[-1].id, "1.00")


@given(st.integers(1, 60))
@settings(max_examples=10, deadline=None)
def test_what_is_not_listed_is_counted(most: int) -> None:
    outcome = asyncio.run(run(BestFirst(k=4, parallel=2)))
    text = page([log_of(outcome)], most=most)
    read = Parsed(text)
    listed = [name for name in read.ids if re.fullmatch(r"s1t\d+", name)]
    hidden = sum(int(count) for count in re.findall(r">(\d+) more are not listed", text))
    below = sum(int(count) for count in re.findall(r" (\d+) grown from them", text))
    assert len(listed) + hidden + below == len(outcome.tree) and len(listed) <= most


async def test_what_a_model_writes_is_no_markup() -> None:
    said = '</pre></details><script>alert(1)</script> "quoted" & \x00\x1b\u202e\ud800 ' + "x" * 200 + "\n"
    engine = ScriptedEngine(lambda prefix, seed: said)
    task = Task(
        root=Prefix(engine.encode("<root>")),
        thought=Sampling(max_tokens=400, stop_ids=(NEWLINE,)),
        read=lambda parent, text: Reading("complete", reason="<b>why</b>"),
    )
    outcome = await search(engine, task, strategy=Beam(k=1, keep=1), name="<em>name</em>")
    text = page([Log("<em>name</em>", tuple(outcome.log))], title="<u>title</u>")
    read = Parsed(text)
    assert "script" not in read.tags and not read.tags & {"em", "u", "root"}
    assert "<script>alert(1)</script>" in read.words and "<em>name</em>" in read.words and "<u>title</u>" in read.words
    assert "x" * 200 in read.words and "<b>why</b>" in read.words
    assert not set(text) & {"\x00", "\x1b", "\u202e", "\ud800"}
    text.encode()


async def test_a_deep_tree_stays_within_what_browsers_nest() -> None:
    engine = ScriptedEngine(lambda prefix, seed: "ab"[seed % 2] + "\n")
    task = Task(root=Prefix(engine.encode("root")), thought=Sampling(max_tokens=4, stop_ids=(NEWLINE,)), max_depth=400)
    outcome = await search(engine, task, strategy=Beam(k=1, keep=1, depth=400))
    read = parsed(log_of(outcome))
    assert len(outcome.tree) == 400 and read.deepest < 500
    assert {f"s1t{number}" for number in outcome.tree.thoughts} <= set(read.ids)


async def test_several_searches_have_contents_and_what_was_carried_is_free() -> None:
    first = await run(BestFirst(k=4), solvable=False)
    decision = first.path[0]
    carried = [Carried(carry.thought._replace(id=carry.id, parent=carry.parent), carry.verdict)
               for carry in first.tree.subtree(decision.id)]  # fmt: skip
    engine = make_engine(cache=True)
    task = make_task(engine, solvable=False)
    second = await search(engine, task, strategy=BestFirst(k=2), budget=Budget(calls=3), carried=carried)
    read = parsed(Log("one", tuple(first.log)), Log("two", tuple(second.log)))
    assert {"s1", "s2"} <= set(read.targets) and read.words.count("carried over") >= len(carried)


def test_a_log_that_only_began_is_a_page(outcome: Outcome) -> None:
    end = next(place for place, event in enumerate(outcome.log) if isinstance(event, Planned)) + 1
    words = parsed(Log("search", tuple(outcome.log[:end]), "line 7 is cut in the middle")).words
    assert "This log is cut: line 7 is cut in the middle" in words
