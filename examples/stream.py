"""Watch a search: its tree grows on the terminal while the agent plans.

python examples/stream.py "Make 24 from 8 5 3 1"

All that is shown comes from LangGraph's `custom` stream; `stream_candidates=True` lets what the candidates say into it.
"""

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools/ are not part of the installed package

from langchain_core.messages import HumanMessage
from rich.console import Console
from rich.live import Live
from rich.text import Text
from rich.tree import Tree

from tools.calculator import calculator
from tts_agent import BestFirst, Budget, load_engine
from tts_agent.nodes import Progress, create_planning_agent
from tts_agent.pocket import countdown_verifier
from tts_agent.pocket.dialect import CountdownDialect


class Growing:
    """The tree of one search, as far as it was told."""

    def __init__(self, opened: Progress) -> None:
        self.title = f"{opened.search} ({opened.details['strategy']}, verdicts by {opened.details['verifier']})"
        self.parents: dict[int, int] = {}
        self.texts: dict[int, str] = {}
        self.notes: dict[int, str] = {}
        self.styles: dict[int, str] = {}
        self.account: dict[str, Any] = {}
        self.best = ""

    def take(self, told: Progress) -> None:
        branch, details = told.branch, told.details
        match told.kind:
            case "tokens" if branch is not None and told.parent is not None:
                self.parents[branch], self.styles[branch] = told.parent, "italic"
                self.texts[branch] = self.texts.get(branch, "") + details["text"]
            case "thought" if branch is not None and told.parent is not None:
                self.parents[branch], self.texts[branch] = told.parent, details["text"]
                self.styles[branch] = {"solved": "bold green", "complete": "cyan"}.get(details["status"], "")
                if details.get("carried") and told.value is not None:
                    self.notes[branch] = f"{told.value:.2f}, carried over"
            case "verdict" if branch is not None and details["score"] is not None:
                self.notes[branch] = f"{details['score']:.2f}"
            case "merged" if branch is not None:
                self.notes[branch], self.styles[branch] = f"same as #{details['into']}", "bright_black"
            case "pruned" if branch is not None:
                self.notes[branch], self.styles[branch] = details["reason"], "bright_black"
            case "best":
                self.best = " | ".join(details["text"].split("\n")).strip(" |")
            case "budget":
                self.account = details["left"]
            case "chosen":
                while branch:
                    self.styles[branch], branch = "bold magenta", self.parents[branch]

    def tree(self) -> Tree:
        left = ", ".join(f"{value:,} {unit} left" for unit, value in self.account.items())
        root = Tree(Text(f"{self.title}  {left}\nbest so far: {self.best or 'nothing yet'}"))
        shown = {0: root}
        for branch in sorted(self.parents):  # a parent is older than its children
            label = Text(f"#{branch} {self.texts[branch].strip()}", style=self.styles.get(branch, ""))
            label.append(f"  {self.notes.get(branch, '')}", "yellow")
            shown[branch] = shown[self.parents[branch]].add(label)
        return root


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("puzzle", nargs="?", default="Make 24 from 8 5 3 1")
    parser.add_argument("--engine", default="embedded://pocket", help="where tokens come from (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    engine = load_engine(options.engine)
    agent: Any = create_planning_agent(
        engine,
        dialect=CountdownDialect(engine),
        tools=[calculator],
        strategy=BestFirst(k=4),
        verifier=countdown_verifier(engine),
        run_budget=Budget(computed_tokens=2500),
        seed=options.seed,
        stream_candidates=True,
    ).compile()

    start: Any = {"messages": [HumanMessage(options.puzzle)]}
    answer = ""
    with Live(console=Console(), refresh_per_second=12, transient=True) as live:
        async for mode, data in agent.astream(start, stream_mode=["custom", "values"]):
            if mode == "values":
                answer = data["messages"][-1].text
                continue
            told = Progress.read(data)
            if told.kind == "opened":
                growing = Growing(told)
            growing.take(told)
            live.update(growing.tree())
            if told.kind == "chosen":
                live.console.print(growing.tree())
                live.update("")
    print(answer)
    await engine.aclose()


if __name__ == "__main__":
    asyncio.run(main())
