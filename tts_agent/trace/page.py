"""The branch trees of a trace as one HTML page, which needs no network and runs no script."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from math import sqrt

from tts_agent.events import Cancelled, Carried, Chosen, Clock, Event, Judged, Lost, Opened, Reissued, Sampled
from tts_agent.search.base import rank
from tts_agent.thought import ROOT, Thought, Unverified, Verdict
from tts_agent.trace.recorder import Log
from tts_agent.trace.shape import chosen_path, descendants, visible_thoughts
from tts_agent.trace.statistics import Statistics, statistics
from tts_agent.tree import ThoughtTree

MOST = 5000
"""Thoughts of a search that are listed."""
DRAWN = 240
"""Thoughts of a search that are drawn."""
_OPEN = 60  # thoughts whose parents stand open at first
_DEPTH = 200  # levels that are indented: browsers stop nesting at 512 elements, and a level takes two
_LINE = 110  # characters of a thought beside its number; the rest is below it


def page(logs: Sequence[Log], *, title: str = "branch trees", most: int = MOST) -> str:
    """One HTML document of the searches in `logs`, the first `most` thoughts of each: the chosen path, then the best.

    Of each search it shows what it was asked and why it ended, what was decided, where the computed tokens went, how
    good the best answer was after how many of them, the tree as a drawing, and its thoughts with verdicts and costs.
    """
    shown = [_Shown.of(number, log, most) for number, log in enumerate(logs, 1)]
    style = files("tts_agent.trace").joinpath("page.css").read_text(encoding="utf-8")
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_text(title)}</title>",
        f"<style>{style}</style></head><body>",
        f"<h1>{_text(title)}</h1>",
        _contents(shown) if len(shown) > 1 else "",
        *(_section(one) for one in shown),
        "</body></html>",
    ]
    return "\n".join(filter(None, parts)) + "\n"


@dataclass(frozen=True, slots=True)
class _Shown:
    """One search of the page, read once."""

    number: int
    log: Log
    tree: ThoughtTree
    numbers: Statistics
    chosen: set[int]
    visible: set[int]
    carried: set[int]

    @classmethod
    def of(cls, number: int, log: Log, most: int) -> "_Shown":
        tree = ThoughtTree(log.events)
        carried = {event.thought.id for event in log.events if isinstance(event, Carried)}
        visible = visible_thoughts(tree, most, most)
        return cls(number, log, tree, statistics(log.events, tree), chosen_path(tree), visible, carried)

    def place(self, thought: int) -> str:
        """The id of a thought's element."""
        return f"s{self.number}t{thought}"

    def children(self, parent: int) -> list[int]:
        """The children that are listed, in the order they were planned."""
        return [child for child in self.tree.children.get(parent, ()) if child in self.visible]

    def ruled_out(self, thought: Thought) -> bool:
        return thought.status in ("dead", "invalid") or thought.id in self.tree.merged or thought.id in self.tree.pruned


def _contents(shown: Sequence[_Shown]) -> str:
    rows = [
        f'<tr><td><a href="#s{one.number}">{_text(one.log.search)}</a></td><td>{_text(_ended(one.log, one.tree))}</td>'
        f"<td>{_text(_first_line(_answer(one)) or 'no decision')}</td>"
        f"<td class=number>{one.numbers.thoughts:,}</td><td class=number>{one.numbers.usage.computed:,}</td></tr>"
        for one in shown
    ]
    head = "<tr><th>search</th><th>ended</th><th>answer</th><th>thoughts</th><th>computed tokens</th></tr>"
    return f"<nav><table>{head}{''.join(rows)}</table></nav>"


def _section(one: _Shown) -> str:
    parts = [
        f'<section id="s{one.number}"><h2>{_text(one.log.search)}</h2>',
        _about(one),
        _figures(one),
        _spent(one),
        '<div class="pictures">',
        _progress(one),
        _drawing(one),
        "</div>",
        _thoughts(one),
        "</section>",
    ]
    return "\n".join(filter(None, parts))


# --- what stands above the tree


def _about(one: _Shown) -> str:
    opened, tree = one.log.opened, one.tree
    settings = ", ".join(f"{name}={value!r}" for name, value in opened.settings.items() if value is not None)
    limits = ", ".join(f"{name} {value:,}" for name, value in opened.budget.items()) or "unlimited"
    rows = {
        "strategy": f"{opened.strategy}({settings}), seed {opened.seed}",
        "engine": ", verdicts by ".join(filter(None, (opened.engine, opened.verifier))),
        "budget": limits,
        "ended": _ended(one.log, tree) + _how(tree.chosen),
    }
    listed = "".join(f"<dt>{name}</dt><dd>{_text(value)}</dd>" for name, value in rows.items() if value)
    cut = f'<p class="cut">This log is cut: {_text(one.log.cut)}</p>' if one.log.cut else ""
    answer = _answer(one)
    decided = f'<div class="answer"><b>decided</b><pre>{_text(answer.strip())}</pre></div>' if answer else ""
    return f'<dl>{listed}</dl>{cut}<pre class="root">{_text(opened.root_text.strip())}</pre>{decided}'


def _ended(log: Log, tree: ThoughtTree) -> str:
    chosen = tree.chosen
    if chosen is None:
        return f"cut: {log.cut}" if log.cut else "under way"
    return str(chosen.stop) + (f" ({chosen.limit})" if chosen.limit else "")


def _how(chosen: Chosen | None) -> str:
    if chosen is None:
        return ""
    found = "no decision" if chosen.thought is None else f"chose #{chosen.thought}"
    committed = ", finished with the tokens held back for the decision" if chosen.committed else ""
    return f"; {found}{committed}" + (f"; {chosen.reason}" if chosen.reason else "")


def _answer(one: _Shown) -> str:
    chosen = one.tree.chosen
    if chosen is None or chosen.thought is None:
        return ""
    return "".join(thought.text for thought in one.tree.path(chosen.thought))


def _figures(one: _Shown) -> str:
    numbers, usage = one.numbers, one.numbers.usage
    tiles = {
        "computed tokens": f"{usage.computed:,}",
        "from the cache": f"{usage.prompt_cached:,}",
        "generated": f"{usage.generated:,}",
        "calls": f"{usage.calls:,}",
        "seconds": f"{usage.seconds:.2f}",
        "thoughts": f"{numbers.thoughts:,}",
        "merged": f"{numbers.merged:,}" if numbers.merged else "",
        "pruned": f"{numbers.pruned:,}" if numbers.pruned else "",
        "carried over": f"{numbers.carried:,}" if numbers.carried else "",
        "unverified": f"{numbers.unverified:,}" if numbers.unverified else "",
        "shared": f"{numbers.cached_share:.0%}" if numbers.cached_share else "",
        "dollars": f"{usage.dollars:.4f}" if usage.dollars else "",
        "lost": ", ".join(f"{value:,} {unit}" for unit, value in numbers.lost.items()),
    }
    listed = "".join(f"<div><b>{_text(value)}</b><span>{name}</span></div>" for name, value in tiles.items() if value)
    return f'<div class="tiles">{listed}</div>'


def _spent(one: _Shown) -> str:
    """A bar of what the computed tokens went into."""
    parts = _computed_by_use(one)
    total = sum(parts.values())
    if not total:
        return ""
    pieces, legend = [], []
    for name, tokens in parts.items():
        if tokens:
            share = tokens / total
            kind = name.replace(" ", "-")
            pieces.append(f'<i class="{kind}" style="width:{share:.2%}" title="{name}: {tokens:,}"></i>')
            legend.append(f'<span><i class="{kind}"></i>{name} {tokens:,} ({share:.0%})</span>')
    bar = f'<div class="bar">{"".join(pieces)}</div><p class="legend">{" ".join(legend)}</p>'
    return f"<h3>where computed tokens went</h3>{bar}"


def _computed_by_use(one: _Shown) -> Mapping[str, int]:
    """Computed tokens of the samples on the chosen path, of other samples by what became of them, of verdicts."""
    parts = dict.fromkeys(("chosen path", "other branches", "given up", "illegal or dead", "verdicts", "lost"), 0)
    for event in one.log.events:
        match event:
            case Sampled(thought):
                status = thought.status in ("dead", "invalid")
                given_up = thought.id in one.tree.pruned or thought.id in one.tree.merged
                other = "illegal or dead" if status else "given up" if given_up else "other branches"
                parts["chosen path" if thought.id in one.chosen else other] += thought.usage.computed
            case Judged(_, verdict):
                parts["verdicts"] += verdict.usage.computed
            case Cancelled() | Reissued():
                parts["given up"] += event.usage.computed
                parts["lost"] += event.lost.computed_tokens
            case Lost():
                parts["lost"] += event.amounts.computed_tokens
    return parts


# --- the best answer so far


def _progress(one: _Shown) -> str:
    """How good the best answer was, over the tokens computed by then."""
    points = _best_so_far(one.log.events)
    if not points:
        return ""
    limit = one.log.opened.budget.get("computed_tokens")
    end = max(one.numbers.usage.computed, 1)
    width, height, left, top = 360, 140, 30, 10

    def at(tokens: float, value: float) -> str:
        return f"{left + tokens / end * width:.1f},{top + (1 - value) * height:.1f}"

    line = [at(points[0][0], 0.0)]
    value = 0.0
    for tokens, better, _ in points:
        line += [at(tokens, value), at(tokens, better)]
        value = better
    line.append(at(end, value))
    marks = "".join(
        '<circle cx="{}" cy="{}" r="3"><title>{}</title></circle>'.format(
            *at(tokens, better).split(","), _text(f"#{number} after {tokens:,} computed tokens: {better:.2f}")
        )
        for tokens, better, number in points
    )
    grid = "".join(
        f'<line class="grid" x1="{left}" x2="{left + width}" y1="{y}" y2="{y}"/>'
        f'<text x="{left - 5}" y="{y + 4}" text-anchor="end">{name}</text>'
        for name, y in (("1", top), ("½", top + height / 2), ("0", top + height))
    )
    of = f" of {limit:,.0f}" if limit else ""
    caption = f"{end:,} computed tokens{of}"
    full = left + width + 10
    return (
        f"<figure><figcaption>best answer so far</figcaption>"
        f'<svg class="progress" viewBox="0 0 {full} {top + height + 26}" width="{full}">{grid}'
        f'<polyline points="{" ".join(line)}"/>{marks}'
        f'<text x="{left}" y="{top + height + 18}">0</text>'
        f'<text x="{left + width}" y="{top + height + 18}" text-anchor="end">{caption}</text></svg>'
        '<p class="legend">an answer that has come to its end counts before any that has not</p></figure>'
    )


def _best_so_far(events: Iterable[Event]) -> list[tuple[int, float, int]]:
    """Where the best answer changed: tokens computed by then, its value (1 if solved), and its thought."""
    tree, tokens, judged = ThoughtTree(), 0, False
    place: tuple[float, ...] = ()
    points: list[tuple[int, float, int]] = []
    for event in events:
        tree.update(event)
        number: int | None = None
        match event:
            case Opened():
                judged = bool(event.verifier)
            case Sampled(thought):
                tokens += thought.usage.computed
                number = None if judged and thought.status != "solved" else thought.id
            case Carried(thought):
                number = thought.id
            case Judged(judged_thought, verdict):
                tokens += verdict.usage.computed
                number = judged_thought
            case Clock() | _:
                continue
        if number is None or tree.thoughts[number].status not in ("open", "complete", "solved"):
            continue
        thought = tree.thoughts[number]
        if number in tree.merged or (thought.status == "open" and thought.reason):
            continue
        if (here := rank(tree, number)) > place:
            place = here
            value = 1.0 if thought.status == "solved" else tree.value(number) or 0.0
            points.append((tokens, value, number))
    return points


# --- the drawing


def _drawing(one: _Shown) -> str:
    """The tree from left to right: the greener a thought the better its verdict, the larger the more it cost."""
    drawn = one.visible if len(one.visible) <= DRAWN else visible_thoughts(one.tree, DRAWN, DRAWN)
    if not drawn:
        return ""
    tree = one.tree
    order: list[int] = []  # parents before children
    stack = [ROOT]
    while stack:
        number = stack.pop()
        order.append(number)
        stack.extend(sorted((child for child in tree.children.get(number, ()) if child in drawn), reverse=True))
    rows: dict[int, float] = {}  # counted from below; a parent stands in the middle of its children
    leaves = 0
    for number in reversed(order):
        below = [rows[child] for child in tree.children.get(number, ()) if child in drawn]
        rows[number] = (min(below) + max(below)) / 2 if below else leaves
        leaves += not below
    levels = max(tree.depth[number] for number in order)
    line, step = min(max(420 / leaves, 5), 13), min(max(640 / levels, 24), 90)
    width, height = 24 + levels * step, 24 + (leaves - 1) * line
    where = {number: (12 + tree.depth[number] * step, height - 12 - rows[number] * line) for number in order}
    edges, dots = [], []
    for number in order:
        x, y = where[number]
        if number == ROOT:
            dots.append(f'<circle class="root" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>the root</title></circle>')
            continue
        thought = tree.thoughts[number]
        from_x, from_y = where[thought.parent]
        kind = "chosen" if number in one.chosen else "out" if one.ruled_out(thought) else "kept"
        middle = (from_x + x) / 2
        curve = f"M{from_x:.1f},{from_y:.1f} C{middle:.1f},{from_y:.1f} {middle:.1f},{y:.1f} {x:.1f},{y:.1f}"
        edges.append(f'<path class="{kind}" d="{curve}"/>')
        cost = 0 if number in one.carried else thought.usage.computed
        size = line / 3 + min(sqrt(cost) / 4, line / 4)
        title = _text(f"#{number} {_first_line(thought.text)} {_score(one.tree, number)}".strip())
        solved = " solved" if thought.status == "solved" else ""
        fill = f' style="fill:{_colour(one.tree, number)}"' if kind != "out" else ""
        dot = f'<circle class="{kind}{solved}" cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}"{fill}>'
        dots.append(f'<a href="#{one.place(number)}">{dot}<title>{title}</title></circle></a>')
    hidden = len(tree.thoughts) - len(drawn)
    rest = f", the best {len(drawn):,} of {len(tree.thoughts):,} thoughts" if hidden else ""
    return (
        f"<figure><figcaption>the tree{rest}</figcaption>"
        f'<div class="scroll"><svg class="tree" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}">{"".join(edges)}{"".join(dots)}</svg></div>'
        '<p class="legend">red to green by verdict, grey without one, hollow where given up; larger: more tokens; '
        "blue: chosen</p></figure>"
    )


def _colour(tree: ThoughtTree, number: int) -> str:
    verdict = tree.verdicts.get(number)
    if not isinstance(verdict, Verdict):
        return "var(--unjudged)"
    return f"hsl({verdict.score * 130:.0f} 60% 45%)"


# --- the thoughts


def _thoughts(one: _Shown) -> str:
    at_first = visible_thoughts(one.tree, 6, _OPEN)
    out = ['<h3>thoughts</h3><div class="thoughts">']
    stack: list[tuple[int, int] | str] = [*_below(one, ROOT, 1)]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            out.append(item)
            continue
        number, level = item
        row, more = _row(one, one.tree.thoughts[number])
        below = _below(one, number, level + 1)
        if level > _DEPTH or not (below or more):
            out.append(f'<div class="leaf" id="{one.place(number)}">{row}</div>{more}')
            stack.extend(below)
            continue
        opened = number in one.chosen or any(child in at_first for child in one.tree.children.get(number, ()))
        name = f'<details id="{one.place(number)}"{" open" if opened and below else ""}>'
        out.append(f'{name}<summary>{row}</summary><div class="below">{more}')
        stack.append("</div></details>")
        stack.extend(below)
    out.append("</div>")
    return "".join(out)


def _below(one: _Shown, parent: int, level: int) -> list[tuple[int, int] | str]:
    """What stands below a thought, the last first."""
    items: list[tuple[int, int] | str] = [(child, level) for child in one.children(parent)]
    hidden = [child for child in one.tree.children.get(parent, ()) if child not in one.visible]
    if hidden:
        grown = descendants(one.tree, hidden)
        tail = f", {grown:,} grown from them" if grown else ""
        items.append(f'<div class="leaf hidden">{len(hidden):,} more are not listed{tail}</div>')
    return items[::-1]


def _row(one: _Shown, thought: Thought) -> tuple[str, str]:
    """A thought in one line, and what did not fit into it."""
    tree, number = one.tree, thought.id
    kind = "chosen" if number in one.chosen else "out" if one.ruled_out(thought) else "kept"
    line = _first_line(thought.text)
    chips = []
    verdict = tree.verdicts.get(number)
    if isinstance(verdict, Verdict):
        colour = _colour(tree, number)
        chips.append(
            f'<b class="score" style="background:{colour}" title="{_text(_why(verdict))}">{verdict.score:.2f}</b>'
        )
    elif isinstance(verdict, Unverified):
        chips.append(f'<span class="chip">unverified: {_text(_first_line(verdict.reason))}</span>')
    if thought.status != "open":
        why = f": {_first_line(thought.reason)}" if thought.reason and thought.status != "solved" else ""
        chips.append(f'<span class="chip {thought.status}">{_text(thought.status + why)}</span>')
    if number in tree.merged:
        into = tree.merged[number]
        chips.append(f'<span class="chip">same as <a href="#{one.place(into)}">#{into}</a></span>')
    if number in tree.pruned and thought.status in ("open", "complete"):
        chips.append(f'<span class="chip">pruned: {_text(_first_line(tree.pruned[number]))}</span>')
    if thought.finish == "length":
        chips.append('<span class="chip">cut at max_tokens</span>')
    if number in one.carried:
        chips.append('<span class="chip">carried over</span>')
    else:
        usage = thought.usage if verdict is None else thought.usage + verdict.usage
        cost = f"{usage.computed:,} / {usage.prompt_cached:,} / {usage.generated:,}"
        chips.append(f'<span class="cost" title="tokens computed / cached / generated, with its verdict">{cost}</span>')
    text = thought.text.strip()
    more = f'<pre class="whole">{_text(text)}</pre>' if line != text else ""
    row = f'<span class="number">#{number}</span> <span class="text {kind}">{_text(line) or "(empty)"}</span> '
    return row + " ".join(chips), more


def _why(verdict: Verdict) -> str:
    return ": ".join(filter(None, (verdict.verifier, verdict.reason))) or "verdict"


def _score(tree: ThoughtTree, number: int) -> str:
    verdict = tree.verdicts.get(number)
    return f"{verdict.score:.2f}" if isinstance(verdict, Verdict) else ""


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    line = lines[0].strip() if lines else ""
    return line if len(line) <= _LINE else line[: _LINE - 3] + "..."


def _text(value: str) -> str:
    """`value` for HTML: what a model wrote can be no markup, and no sign that a page must not hold."""
    return escape("".join(map(_sign, value)), quote=True)


def _sign(sign: str) -> str:
    if sign.isprintable() or sign in "\n\t":
        return sign
    return " " if sign.isspace() else "\ufffd"
