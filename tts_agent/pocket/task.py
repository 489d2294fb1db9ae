"""Countdown as a task of the search: one operation is one thought."""

from tts_agent.engines.base import Engine, Sampling
from tts_agent.errors import ConfigError
from tts_agent.pocket.countdown import IllegalStep, Puzzle, Step, apply, parse_step, prompt_text
from tts_agent.prefix import Prefix
from tts_agent.task import Reader, Task
from tts_agent.thought import Reading, Thought
from tts_agent.verifiers.labels import LabelVerifier


def countdown_task(engine: Engine, puzzle: Puzzle, *, root: Prefix | None = None, temperature: float = 1.0) -> Task:
    """The task of solving `puzzle` with the pocket planner.

    A thought is one operation with the numbers left after it; its action is
    `{"expression": "8*3", "result": 24, "left": [24, 5, 1]}`. Thoughts that leave the same numbers are the same. A
    thought is solved or dead when one number is left. `root` continues an earlier prefix, after which the numbers
    of `puzzle` are left; by default the puzzle is stated from scratch.
    """
    newline, end_ids = _newline(engine), engine.capabilities.end_ids
    size = len(puzzle.numbers)
    # a op b = result left: n-1 numbers newline
    longest = sum(numbers + 6 for numbers in range(2, size + 1))
    return Task(
        root=root or Prefix(engine.encode(prompt_text(puzzle))),
        thought=Sampling(max_tokens=size + 6, temperature=temperature, stop_ids=(newline, *end_ids)),
        answer=Sampling(max_tokens=longest + 1, temperature=temperature, stop_ids=end_ids),
        read=_reader(puzzle),
        end_ids=frozenset(end_ids),
    )


def countdown_verifier(engine: Engine) -> LabelVerifier:
    """The verdict the pocket planner was trained to give: can the target still be reached?"""
    return LabelVerifier(engine, question="?", good="sure", bad="impossible", name="sure")


def _reader(puzzle: Puzzle) -> Reader:
    def read(parent: Thought | None, text: str) -> Reading:
        numbers = tuple(parent.action["left"]) if parent is not None else puzzle.numbers
        step: Step | None = None
        for line in text.splitlines():
            step = parse_step(line)
            if step is None:
                return Reading("invalid", reason=f"not an operation: {line!r}")
            try:
                numbers = apply(numbers, step)
            except IllegalStep as illegal:
                return Reading("invalid", reason=illegal.reason)
        if step is None:
            return Reading("invalid", reason="no operation")
        action = {"expression": f"{step.a}{step.op}{step.b}", "result": step.result, "left": list(numbers)}
        if len(numbers) > 1:
            return Reading("open", action, " ".join(map(str, sorted(numbers))))
        if numbers[0] == puzzle.target:
            return Reading("solved", action, reason=f"reaches {puzzle.target}")
        return Reading("dead", action, reason=f"ends at {numbers[0]}, not {puzzle.target}")

    return read


def _newline(engine: Engine) -> int:
    ids = engine.encode("\n")
    if len(ids) != 1:
        raise ConfigError(
            f"engine {engine.name!r} encodes a newline to {len(ids)} tokens; Countdown needs the pocket planner, "
            "load_engine('embedded://pocket')"
        )
    return ids[0]
