"""The demonstration on the terminal."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from tts_agent.demo import agent, contest
from tts_agent.demo.arms import ARMS, BASELINES, SEARCH
from tts_agent.demo.contest import CONTESTS, Contest, Result
from tts_agent.demo.intervals import Difference
from tts_agent.engines import Engine, load_engine
from tts_agent.pocket import Puzzle
from tts_agent.pocket.countdown import prompt_text
from tts_agent.trace import read, remove, render


def run(
    *,
    engine: str | Callable[[], Engine] = "embedded://pocket",
    puzzles: int | None = None,
    seed: int = 0,
    out: str | Path = "demo-trace.jsonl",
    console: Console | None = None,
) -> dict[str, Any]:
    """Show the demonstration and return its numbers as plain JSON.

    `puzzles` is the number for each contest; by default each has its own, and where there are fewer it is said and
    all of them are played. The agent's searches are recorded in `out`,
    which is replaced if it is a trace. Raises `ConfigError` for a bad number, `ModelError` for a bad model.
    """
    opened = (lambda: load_engine(engine)) if isinstance(engine, str) else engine
    return asyncio.run(_Show(opened, puzzles, seed, Path(out), console or Console()).run())


class _Show:
    def __init__(
        self, open_engine: Callable[[], Engine], puzzles: int | None, seed: int, out: Path, console: Console
    ) -> None:
        self._open, self._seed, self._out, self._console = open_engine, seed, out, console
        self._asked = puzzles
        self._puzzles = {one.name: contest.choose(one, puzzles, seed) for one in CONTESTS}

    async def run(self) -> dict[str, Any]:
        begun = time.monotonic()
        self._fewer()
        played = await self._agent(CONTESTS[0], self._puzzles[CONTESTS[0].name][0])
        self._tree()
        results = [await self._contest(one) for one in CONTESTS]
        for result in results:
            self._table(result)
        seconds = round(time.monotonic() - begun, 1)
        self._console.print(f"\nThe whole demonstration took {seconds:.0f} s.", style="bright_black", highlight=False)
        return {
            "seed": self._seed,
            "agent": played,
            "contests": {result.contest.name: result.to_json() for result in results},
            "seconds": seconds,
        }

    def _fewer(self) -> None:
        """Say where there are fewer puzzles than were asked for."""
        for one in CONTESTS:
            if self._asked is not None and (there := len(self._puzzles[one.name])) < self._asked:
                self._say(f"{one.title}: {self._asked:,} puzzles were asked for, and there are {there:,}.")

    # --- the agent

    async def _agent(self, one: Contest, puzzle: Puzzle) -> dict[str, Any]:
        statement = prompt_text(puzzle).strip()
        self._console.rule("A LangGraph agent whose planning steps search", align="left")
        self._say(f"Held-out puzzle, drawn by seed {self._seed}: [bold]{statement}[/]")
        self._say("Each step searches ahead to the end, commits one operation, runs it through its calculator tool.\n")
        engine = self._open()
        remove(self._out)  # only once there is something to put in its place
        steps: list[dict[str, Any]] = []
        solved = False
        try:
            with self._console.status("searching"):
                moments = agent.play(
                    engine, puzzle, computed_tokens=one.computed_tokens, seed=self._seed, trace=self._out
                )
                async for moment in moments:
                    self._moment(moment)
                    if isinstance(moment, agent.Planned):
                        steps.append(asdict(moment))
                    elif isinstance(moment, agent.Answered):
                        solved = moment.solved
        finally:
            await engine.aclose()
        return {"puzzle": statement, "solved": solved, "steps": steps, "trace": str(self._out)}

    def _moment(self, moment: agent.Moment) -> None:
        match moment:
            case agent.Planned():
                if moment.step > 1:
                    self._say(
                        f"        as predicted: {moment.inherited:,} thoughts carried over, nothing is paid twice"
                        if moment.inherited
                        else "        nothing could be carried over: the next search starts at a new root"
                    )
                score = "" if moment.score is None else f"  verdict {moment.score:.2f}"
                stop = f"{moment.stop} ({moment.limit})" if moment.limit else moment.stop
                self._say(f"step {moment.step}  [bold cyan]{moment.decision}[/]{score}")
                self._say(
                    f"        searched {moment.thoughts:,} new thoughts, {moment.computed:,} tokens computed and "
                    f"{moment.cached:,} cached; stopped: {stop}"
                )
            case agent.Observed():
                self._say(f"        calculator({moment.expression}) = {moment.result}")
            case agent.Answered():
                self._say(f"answer  [bold {'green' if moment.solved else 'red'}]{moment.text}[/]\n")

    def _tree(self) -> None:
        self._console.rule("The branch tree of its first step", align="left")
        self._console.print(render(read(self._out)[0]))
        self._say(f"All steps: [bold]tts-agent tree {self._out}[/]   (every thought: --all)\n")

    # --- the comparison

    async def _contest(self, one: Contest) -> Result:
        puzzles = self._puzzles[one.name]
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True) as progress:
            tasks = {arm: progress.add_task(f"{one.title}: {arm}", total=len(puzzles)) for arm in ARMS}
            return await contest.play(
                one, puzzles, self._open, seed=self._seed, on_attempt=lambda arm: progress.advance(tasks[arm])
            )

    def _table(self, result: Result) -> None:
        one = result.contest
        self._console.rule(f"{one.title}: {len(result.puzzles)} held-out puzzles", align="left")
        self._say(
            f"Every arm may compute {one.computed_tokens:,} tokens a puzzle, verdicts included, and stops once solved. "
            "The same runs tell what was solved with less. Tokens are means a puzzle."
        )
        budgets = (*one.marks, one.computed_tokens)
        table = _columns("", *(f"{budget:,}" for budget in budgets), "computed", "verdicts", "generated")
        most = max(row.solved() for row in result.rows)
        for row in result.rows:
            solved = [f"{row.solved(budget):.1%}" for budget in budgets]
            tokens = [f"{row.mean(attrgetter(name)):,.0f}" for name in ("computed", "verifier", "generated")]
            table.add_row(row.arm, *solved, *tokens, style="bold" if row.solved() == most else "")
        self._console.print(table)
        self._say("\nPaired differences in points, 95 % intervals. Ahead means: the interval is clear of zero.")
        differences = {budget: result.differences(budget) for budget in budgets}
        table = _columns("", *(f"{SEARCH} - {arm}" for arm in BASELINES))
        for budget in budgets:
            table.add_row(f"{budget:,} tokens", *(_interval(differences[budget][arm]) for arm in BASELINES))
        self._console.print(table)
        best = ", ".join(row.arm for row in result.rows if row.solved() == most)
        self._say(f"\nMost solved with {one.computed_tokens:,} tokens: [bold]{best}[/].")
        for arm in BASELINES:
            self._console.print(_verdict(arm, {budget: differences[budget][arm] for budget in budgets}))
        self._console.print()

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False)


def _columns(first: str, *names: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(first)
    for name in names:
        table.add_column(name, justify="right")
    return table


def _interval(difference: Difference) -> Text:
    mean, low, high = (f"{100 * value:+.1f}" for value in (difference.mean, difference.low, difference.high))
    style = "green" if difference.ahead else "red" if difference.behind else ""
    return Text(f"{mean} ({low} to {high})", style)


def _verdict(arm: str, differences: dict[int, Difference]) -> Text:
    """Where tree search is ahead of `arm`, where behind, and where neither is shown."""
    ahead = [budget for budget, difference in differences.items() if difference.ahead]
    behind = [budget for budget, difference in differences.items() if difference.behind]
    neither = [budget for budget in differences if budget not in ahead and budget not in behind]
    parts = [("ahead at", ahead, "green"), ("behind at", behind, "red"), ("not shown to differ at", neither, "yellow")]
    text = Text(f"{SEARCH}, against {arm}: ")
    for words, budgets, style in parts:
        if budgets:
            text.append(f"{words} ", style).append(", ".join(f"{budget:,}" for budget in budgets) + "; ")
    text.right_crop(2)
    return text.append(" tokens.")
