"""The demonstration on the terminal."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from tts_agent.demo import agent, contest
from tts_agent.demo.arms import ARMS, SEARCH
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

    `puzzles` is the number for each contest; by default each has its own. The agent's searches are recorded in `out`,
    which is replaced if it is a trace. Raises `ConfigError` for a bad number, `ModelError` for a bad model.
    """
    opened = (lambda: load_engine(engine)) if isinstance(engine, str) else engine
    return asyncio.run(_Show(opened, puzzles, seed, Path(out), console or Console()).run())


class _Show:
    def __init__(
        self, open_engine: Callable[[], Engine], puzzles: int | None, seed: int, out: Path, console: Console
    ) -> None:
        self._open, self._seed, self._out, self._console = open_engine, seed, out, console
        self._puzzles = {one.name: contest.choose(one, puzzles, seed) for one in CONTESTS}

    async def run(self) -> dict[str, Any]:
        begun = time.monotonic()
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

    # --- the agent

    async def _agent(self, one: Contest, puzzle: Puzzle) -> dict[str, Any]:
        statement = prompt_text(puzzle).strip()
        self._console.rule("A LangGraph agent whose planning steps search", align="left")
        self._say(f"Held-out puzzle, drawn by seed {self._seed}: [bold]{statement}[/]")
        self._say("Each step searches ahead to the end, commits one operation, runs it through its calculator tool.\n")
        remove(self._out)
        engine = self._open()
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
        one, count = result.contest, len(result.rows[0].attempts)
        self._console.rule(f"{one.title}: {count} held-out puzzles", align="left")
        self._say(
            f"Every arm may compute {one.computed_tokens:,} tokens a puzzle, verdicts included, and stops once solved. "
            "Tokens are means a puzzle."
        )
        table = Table(box=None, header_style="bold", pad_edge=False)
        for name in ("", "solved", "computed", "by verifier", "cached", "generated", "thoughts"):
            table.add_column(name, justify="right" if name else "left")
        most = max(row.solved for row in result.rows)
        for row in result.rows:
            tokens = [row.mean(lambda one, n=name: getattr(one, n)) for name in _MEANS]  # type: ignore[misc]
            table.add_row(
                row.arm,
                f"{row.solved:.1%}",
                *(f"{mean:,.0f}" for mean in tokens),
                style="bold" if row.solved == most else "",
            )
        self._console.print(table)
        best = ", ".join(row.arm for row in result.rows if row.solved == most)
        self._say(f"\nMost puzzles solved: {best}.")
        for arm, difference in result.differences.items():
            self._console.print(_verdict(arm, difference))
        self._console.print()

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False)


_MEANS = ("computed", "verifier", "cached", "generated", "thoughts")


def _verdict(arm: str, difference: Difference) -> Text:
    if difference.ahead:
        word, style = "ahead: the interval is clear of zero", "green"
    elif difference.behind:
        word, style = "behind: the interval is clear of zero", "red"
    else:
        word, style = "not shown to differ: the interval holds zero", "yellow"
    mean, low, high = (f"{100 * value:+.1f}" for value in (difference.mean, difference.low, difference.high))
    return Text.assemble(f"{SEARCH} - {arm}, paired: {mean} points, 95 % interval {low} to {high}; ", (word, style))
