"""Countdown as a conversation: a puzzle in, one calculator call a decision, the solution as an expression out."""

import re
from collections.abc import Sequence
from typing import NamedTuple
from uuid import uuid4

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolCall, ToolMessage

from tts_agent.dialect import Answer, Decided, Request
from tts_agent.engines.base import Engine
from tts_agent.errors import ConfigError
from tts_agent.pocket.countdown import LARGEST, Puzzle, parse_prompt, parse_step
from tts_agent.pocket.task import countdown_task
from tts_agent.thought import Observation, Thought

TOOL = "calculator"
"""Name of the tool that carries out a decision; it takes one `expression`."""

_NUMBERS = r"(?P<numbers>\d+(?:(?:\s|,|\band\b)+\d+)*)"
_SENTENCE = (
    re.compile(rf"(?:make|reach|get)\s+(?P<target>\d+)\s+(?:from|with|out of|using)\s+{_NUMBERS}", re.I),
    re.compile(rf"(?:use|using|from|with)\s+{_NUMBERS}\s+to\s+(?:make|reach|get)\s+(?P<target>\d+)", re.I),
    re.compile(rf"{_NUMBERS}\W*target\W*(?P<target>\d+)", re.I),
)
_OPERATION = re.compile(r"\s*(\d+)\s*([-+*/])\s*(\d+)\s*")
_WHOLE = re.compile(r"\s*(-?\d+)(?:\.0+)?\s*")


class Term(NamedTuple):
    """A number on the table and the expression that made it."""

    value: int
    text: str


class CountdownDialect:
    """The dialect of the pocket planner.

    The last human message states the puzzle, as ``nums: 8 5 3 1 target: 24`` or in a sentence such as "Make 24 from
    8 5 3 1". A decision is one operation, which calls the tool `calculator`; the number it returns is put on the table,
    whatever the planner had predicted. With one number left the run's answer is the whole solution. `temperature` is
    that of the samples.
    """

    def __init__(self, engine: Engine, *, temperature: float = 1.0) -> None:
        self.engine = engine
        self.temperature = temperature
        countdown_task(engine, Puzzle((1, 1), 1))  # raises at once for an engine that serves another model

    def request(self, messages: Sequence[AnyMessage], last: Decided | None) -> Request | Answer:
        start = max((i for i, message in enumerate(messages) if isinstance(message, HumanMessage)), default=None)
        if start is None:
            raise ConfigError("the messages contain no human message; state a puzzle: 'nums: 8 5 3 1 target: 24'")
        puzzle = parse_puzzle(messages[start].text)
        table, news = _play(puzzle, messages[start + 1 :])
        numbers = tuple(term.value for term in table)
        if impossible := [number for number in numbers if not 0 <= number <= LARGEST]:
            return Answer(f"{impossible[0]} is outside 0..{LARGEST}, the planner cannot go on. Not solved.", False)
        if len(numbers) == 1:
            return _answer(table[0], puzzle.target)
        observations = tuple(Observation(answer.text, self._predicted(answer, last)) for answer in news)
        if last is not None and observations and all(seen.predicted for seen in observations):
            left = tuple(last.thought.action["left"])
            if sorted(left) == sorted(numbers):
                task = countdown_task(
                    self.engine, Puzzle(left, puzzle.target), root=last.prefix, temperature=self.temperature
                )
                return Request(task, observations)
        return Request(
            countdown_task(self.engine, Puzzle(numbers, puzzle.target), temperature=self.temperature), observations
        )

    @staticmethod
    def _predicted(answer: ToolMessage, last: Decided | None) -> bool:
        # A thought that is a whole answer predicts what follows all its operations, not what follows its first.
        if last is None or answer.status == "error" or len(last.thought.text.strip().splitlines()) != 1:
            return False
        found = _WHOLE.fullmatch(answer.text)
        return found is not None and int(found[1]) == last.thought.action["result"]

    def decide(self, thought: Thought) -> AIMessage:
        line = thought.text.strip().splitlines()[0]
        step = parse_step(line)
        if step is None:
            raise ConfigError(f"thought {thought.text!r} is no Countdown operation; search with countdown_task")
        expression = {"expression": f"{step.a}{step.op}{step.b}"}
        return AIMessage(line, tool_calls=[ToolCall(name=TOOL, args=expression, id=f"call_{uuid4().hex}")])


def parse_puzzle(text: str) -> Puzzle:
    """The puzzle that a message states. Raises `ConfigError` if it states none, or one with numbers out of range."""
    puzzle = parse_prompt(text)
    if puzzle is None:
        found = next((match for pattern in _SENTENCE if (match := pattern.search(text))), None)
        numbers = tuple(map(int, re.findall(r"\d+", found["numbers"]))) if found else ()
        if found is None or not numbers:
            raise ConfigError(
                f"the message {text[:80]!r} states no puzzle; write 'nums: 8 5 3 1 target: 24' or "
                "'Make 24 from 8 5 3 1'"
            )
        try:
            puzzle = Puzzle(numbers, int(found["target"]))
        except ValueError as error:
            raise ConfigError(f"the puzzle {text[:80]!r} cannot be played: {error}") from error
    if len(puzzle.numbers) < 2:
        raise ConfigError(f"the puzzle {text[:80]!r} has one number only; give at least two")
    return puzzle


def _play(puzzle: Puzzle, messages: Sequence[AnyMessage]) -> tuple[list[Term], list[ToolMessage]]:
    """The table after the calculator's results so far, and what came after the newest call."""
    table = [Term(number, str(number)) for number in puzzle.numbers]
    calls: dict[str, str] = {}
    news: list[ToolMessage] = []
    for message in messages:
        if isinstance(message, AIMessage):
            news = []
            calls |= {str(call["id"]): str(call["args"].get("expression", "")) for call in message.tool_calls}
        elif isinstance(message, ToolMessage):
            news.append(message)
            if message.status != "error":
                table = _after(table, calls.get(message.tool_call_id, ""), message.text)
    return table, news


def _after(table: list[Term], expression: str, result: str) -> list[Term]:
    """The table after an operation; unchanged if the tool gave no number or the operation takes none from the table."""
    operation, number = _OPERATION.fullmatch(expression), _WHOLE.fullmatch(result)
    if operation is None or number is None:
        return table
    rest, used = list(table), []
    for operand in (int(operation[1]), int(operation[3])):
        term = next((term for term in rest if term.value == operand), None)
        if term is None:
            return table
        rest.remove(term)
        used.append(term.text if term.text.isdigit() else f"({term.text})")
    return [Term(int(number[1]), f"{used[0]}{operation[2]}{used[1]}"), *rest]


def _answer(term: Term, target: int) -> Answer:
    if term.value == target:
        return Answer(f"{term.text} = {target}. Solved.", solved=True)
    return Answer(f"{term.text} = {term.value}, not {target}. Not solved.", solved=False)
