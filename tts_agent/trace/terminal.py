"""The branch tree of a search for the terminal."""

from collections import Counter

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from tts_agent.events import Carried, Opened
from tts_agent.thought import ROOT, Thought, Unverified, Verdict
from tts_agent.trace.recorder import Log
from tts_agent.trace.shape import chosen_path, descendants, visible_thoughts
from tts_agent.trace.statistics import Statistics, statistics
from tts_agent.tree import ThoughtTree

SIBLINGS = 6
"""Children of one thought that are shown."""
MOST = 40
"""Thoughts that are shown in all."""
_WIDTH = 56  # characters of a thought

_STATUS = {
    "open": "",
    "complete": "cyan",
    "solved": "bold green",
    "dead": "red",
    "invalid": "red",
}


def render(log: Log, *, everything: bool = False, siblings: int = SIBLINGS, most: int = MOST) -> RenderableType:
    """The search as a tree of its thoughts, between what it was asked and what it cost.

    A large tree is collapsed to `siblings` children a thought and `most` thoughts, the chosen path and the best first,
    with the number of what is hidden in its place; `everything` shows all.
    """
    tree = ThoughtTree(log.events)
    numbers = statistics(log.events, tree)
    visible = set(tree.thoughts) if everything else visible_thoughts(tree, siblings, most)
    carried = {event.thought.id for event in log.events if isinstance(event, Carried)}
    return Group(_header(log, tree), _branches(tree, visible, carried), _footer(numbers), Text())


# --- the tree


def _branches(tree: ThoughtTree, visible: set[int], carried: set[int]) -> Tree:
    chosen = chosen_path(tree)
    shown = {ROOT: Tree(Text(_line(tree.root_text) or "(root)", style="bold"), guide_style="bright_black")}
    for number in sorted(visible):
        thought = tree.thoughts[number]
        label = _thought(tree, thought, chosen=number in chosen, carried=number in carried)
        style = "bold cyan" if number in chosen else "bright_black"
        shown[number] = shown[thought.parent].add(label, guide_style=style)
    for parent, branch in shown.items():
        hidden = [child for child in tree.children.get(parent, ()) if child not in visible]
        if hidden:
            branch.add(_hidden(tree, hidden))
    return shown[ROOT]


def _thought(tree: ThoughtTree, thought: Thought, *, chosen: bool, carried: bool) -> Text:
    ruled_out = thought.status in ("dead", "invalid") or thought.id in tree.merged or thought.id in tree.pruned
    style = "bold cyan" if chosen else "bright_black" if ruled_out else ""
    text = Text.assemble((f"#{thought.id} ", "bright_black"), (_line(thought.text) or "(empty)", style))
    verdict = tree.verdicts.get(thought.id)
    if isinstance(verdict, Verdict):
        text.append(f"  {verdict.score:.2f}", _score_style(verdict.score))
    elif isinstance(verdict, Unverified):
        text.append("  unverified", "magenta").append(f" ({_line(verdict.reason)})", "bright_black")
    text.append_text(_standing(tree, thought))
    if thought.finish == "length":
        text.append("  cut at max_tokens", "yellow")
    if chosen:
        text.append("  chosen", "bold cyan")
    if carried:
        text.append("  carried over", "blue")
    else:
        usage = thought.usage if verdict is None else thought.usage + verdict.usage
        text.append(f"  {usage.computed:,}/{usage.prompt_cached:,}/{usage.generated:,}", "bright_black")
    return text


def _standing(tree: ThoughtTree, thought: Thought) -> Text:
    """Status, and why the thought is not grown."""
    text = Text()
    if thought.status != "open":
        text.append(f"  {thought.status}", _STATUS[thought.status])
        if thought.reason and thought.status != "solved":
            text.append(f": {_line(thought.reason)}", "bright_black")
    if thought.id in tree.merged:
        text.append(f"  same as #{tree.merged[thought.id]}", "bright_black")
    reason = tree.pruned.get(thought.id)
    if reason is not None and thought.status in ("open", "complete"):
        text.append("  pruned", "yellow").append(f": {_line(reason)}", "bright_black")
    return text


def _score_style(score: float) -> str:
    return "green" if score >= 2 / 3 else "yellow" if score >= 1 / 3 else "red"


def _hidden(tree: ThoughtTree, hidden: list[int]) -> Text:
    kinds = Counter("merged" if child in tree.merged else tree.thoughts[child].status for child in hidden)
    what = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    below = descendants(tree, hidden)
    tail = f", {below:,} grown from them" if below else ""
    return Text(f"... {len(hidden):,} more hidden: {what}{tail}", "italic bright_black")


def _line(text: str) -> str:
    """The first line of what a model wrote, safe for a terminal."""
    lines = text.strip().splitlines()
    if not lines:
        return ""
    line = "".join(sign if sign.isprintable() else " " for sign in lines[0]).strip()
    if len(line) > _WIDTH:
        line = line[: _WIDTH - 3] + "..."
    return line if len(lines) == 1 else f"{line} (+{len(lines) - 1} lines)"


# --- what stands around it


def _header(log: Log, tree: ThoughtTree) -> Text:
    opened = log.opened
    settings = ", ".join(f"{name}={value!r}" for name, value in opened.settings.items() if value is not None)
    text = _row("search", f"{log.search}: {opened.strategy}({settings}), seed {opened.seed}")
    text.append_text(_row("engine", ", verdicts by ".join(filter(None, (opened.engine, opened.verifier)))))
    text.append_text(_row("budget", _limits(opened)))
    chosen = tree.chosen
    if chosen is not None:
        limit = f": {chosen.limit}" if chosen.limit else ""
        found = "no decision" if chosen.thought is None else f"chose #{chosen.thought}"
        committed = ", finished with the tokens held back for the decision" if chosen.committed else ""
        text.append_text(_row("stopped", f"{chosen.stop}{limit}; {found}{committed}"))
    if log.cut:
        text.append_text(_row("cut", log.cut, "bold red"))
    text.append_text(
        _row("shown", "thought, verdict, status; tokens computed/cached/generated, its verdict's included")
    )
    return text


def _limits(opened: Opened) -> str:
    return ", ".join(f"{name} {value:,}" for name, value in opened.budget.items()) or "unlimited"


def _footer(numbers: Statistics) -> Text:
    usage = numbers.usage
    text = _row(
        "tokens",
        f"{usage.computed:,} computed ({_percent(numbers.verifier_share)} by verifiers), "
        f"{usage.prompt_cached:,} cached, {usage.generated:,} generated; {usage.calls:,} calls, {usage.seconds:.2f} s",
    )
    if numbers.lost:
        text.append_text(_row("lost", ", ".join(f"{value:,} {unit}" for unit, value in numbers.lost.items()), "red"))
    if numbers.cached_share:
        ratio = "" if numbers.computed_ratio is None else f"; computed / needed once = {numbers.computed_ratio:.2f}"
        text.append_text(_row("sharing", f"{_percent(numbers.cached_share)} of all tokens came from the cache{ratio}"))
    text.append_text(_row("thoughts", _thoughts(numbers)))
    if numbers.judged or numbers.unverified:
        text.append_text(_row("verdicts", _verdicts(numbers)))
    return text


def _thoughts(numbers: Statistics) -> str:
    status = "".join(f", {count:,} {name}" for name, count in numbers.status.items() if name != "open")
    parts = [
        f"{numbers.thoughts:,} sampled{status}, {numbers.merged:,} merged, {numbers.pruned:,} pruned",
        f"{numbers.carried:,} carried over" if numbers.carried else "",
        f"{numbers.under_way:,} still under way" if numbers.under_way else "",
        "by depth " + " ".join(f"{depth}:{count:,}" for depth, count in numbers.depth.items()) if numbers.depth else "",
    ]
    return "; ".join(filter(None, parts))


def _verdicts(numbers: Statistics) -> str:
    text = f"{numbers.judged:,} judged, {numbers.unverified:,} unverified"
    known = numbers.calibration
    if known is None:
        return text
    elsewhere = "" if known.elsewhere is None else f", {known.elsewhere:.2f} elsewhere ({known.others:,})"
    return f"{text}; mean {known.on_solving:.2f} on the way to a solution ({known.solving:,}){elsewhere}"


def _row(name: str, value: str, style: str = "") -> Text:
    return Text.assemble((f"{name:<9}", "bold"), (value, style), "\n")


def _percent(share: float | None) -> str:
    return "0%" if share is None else f"{share:.0%}"
