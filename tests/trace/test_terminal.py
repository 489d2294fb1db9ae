"""The tree on the terminal: everything that matters is there, and large trees are collapsed honestly."""

import asyncio
import re
from io import StringIO
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from tests.scripts import NEWLINE, make_engine, make_task
from tests.trace.searches import log_of, run
from tts_agent import (
    Beam,
    BestFirst,
    CheckVerifier,
    Outcome,
    Prefix,
    Reading,
    Sampling,
    ScriptedEngine,
    Task,
    search,
)
from tts_agent.events import Planned
from tts_agent.trace import Log, render


def shown(log: Log, **options: Any) -> str:
    console = Console(file=StringIO(), width=200, color_system=None)
    console.print(render(log, **options))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    return asyncio.run(run(BestFirst(k=4, parallel=2)))


def test_everything_shows_every_thought_with_its_standing(outcome: Outcome) -> None:
    text = shown(log_of(outcome), everything=True)
    lines = {
        int(found[1]): line for line in text.splitlines() if (found := re.search(r"#(\d+) ", line)) and "──" in line
    }
    lines |= {int(found[1]): line for line in text.splitlines() if (found := re.search(r"━ #(\d+) ", line))}
    assert lines.keys() == outcome.tree.thoughts.keys()
    for number, thought in outcome.tree.thoughts.items():
        line = lines[number]
        assert thought.text.strip() in line
        assert ("chosen" in line) == (thought in outcome.path)
        assert thought.status == "open" or thought.status in line
        verdict = outcome.tree.verdicts.get(number)
        assert verdict is None or f"{verdict.score:.2f}" in line  # type: ignore[union-attr]
        if number in outcome.tree.merged:
            assert f"same as #{outcome.tree.merged[number]}" in line
        assert f"/{thought.usage.generated}" in line
    assert "hidden" not in text


def test_header_and_footer_say_what_was_asked_and_what_it_cost(outcome: Outcome) -> None:
    text = shown(log_of(outcome))
    assert "best_first(k=4, discount=0.5, parallel=2" in text
    assert "computed_tokens 2,500" in text
    assert "seed 3" in text and "scripted" in text and "labels" in text
    assert f"solved; chose #{outcome.path[-1].id}" in text
    assert f"{outcome.usage.computed:,} computed" in text
    assert f"{outcome.usage.prompt_cached:,} cached" in text
    assert f"{outcome.usage.generated:,} generated" in text


@given(st.integers(1, 9), st.integers(1, 80))
@settings(max_examples=30, deadline=None)
def test_a_collapsed_tree_counts_what_it_hides(outcome: Outcome, siblings: int, most: int) -> None:
    text = shown(log_of(outcome), siblings=siblings, most=most)
    visible = {int(number) for number in re.findall(r"(?:──|━━) #(\d+) ", text)}
    hidden = sum(int(count) for count in re.findall(r"(\d+) more hidden", text))
    below = sum(int(count) for count in re.findall(r"(\d+) grown from them", text))
    assert len(visible) + hidden + below == len(outcome.tree)
    assert len(visible) <= most
    chosen = [thought.id for thought in outcome.path]
    assert chosen[:most] == [number for number in chosen if number in visible]


async def test_a_limit_that_stopped_the_search_is_named() -> None:
    text = shown(log_of(await run(Beam(k=8, keep=4), limit=150)))
    assert "budget: computed_tokens" in text


async def test_a_pruned_thought_says_why() -> None:
    assert "pruned: beam" in shown(log_of(await run(Beam(k=8, keep=2), seed=0, limit=10**5)), everything=True)


def test_a_cut_log_says_where_and_what_was_under_way(outcome: Outcome) -> None:
    end = next(place for place, event in enumerate(outcome.log) if isinstance(event, Planned)) + 1
    text = shown(Log("search", tuple(outcome.log[:end]), "line 7 is cut in the middle"))
    assert "line 7 is cut in the middle" in text
    assert "4 still under way" in text
    assert "stopped" not in text


async def test_what_a_model_writes_cannot_reach_the_terminal() -> None:
    engine = ScriptedEngine(lambda prefix, seed: "[red]\x1b[31mhi\x07\u202e[/nope] " + "x" * 200 + "\n")
    task = Task(
        root=Prefix(engine.encode("root")),
        thought=Sampling(max_tokens=400, stop_ids=(NEWLINE,)),
        read=lambda parent, text: Reading("complete"),
    )
    outcome = await search(engine, task, strategy=Beam(k=1, keep=1))
    text = shown(log_of(outcome))
    assert "[red]" in text and "[/nope]" in text
    assert not set(text) & {"\x1b", "\x07", "\u202e"}
    assert "xxx..." in text and "x" * 60 not in text


async def test_an_unverified_thought_says_so() -> None:
    engine = make_engine()

    def check(branch: object) -> float:
        raise ValueError("no judge [today]")

    outcome = await search(
        engine, make_task(engine), strategy=Beam(k=2, keep=1, depth=1), verifier=CheckVerifier(check)
    )
    assert "unverified (ValueError: no judge [today])" in shown(log_of(outcome))
