"""What middleware inside a handler updates the agent's state with, of each call of the handler its own."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from types import CellType, FunctionType
from typing import Any, Generic, TypeVar, cast

from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.types import Command

from tts_agent.nodes.spent import BUDGETS, Entry, merge_budgets

Handler = TypeVar("Handler", bound=Callable[..., Any])

COLLECTED = "accumulated_commands"
"""The variable of LangChain's handlers that holds the list of commands."""


class Commands(Generic[Handler]):
    """Commands of the calls of one handler, which end in the agent's state for those that are given at the end.

    Middleware inside says them with `ExtendedModelResponse`. A handler that LangChain did not make has none.
    """

    # NOTE: LangChain has all calls of a handler write into one list, and what is in it at the end updates the state.
    # That is right for retries, one after the other, and there is no public way to tell commands of calls side by side.
    # So each call is one of a copy of the function, with a list of its own.

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._given: list[Command[Any]] | None = None
        if isinstance(handler, FunctionType) and COLLECTED in handler.__code__.co_freevars:
            self._place = handler.__code__.co_freevars.index(COLLECTED)
            self._given = cast(tuple[CellType, ...], handler.__closure__)[self._place].cell_contents

    def apart(self) -> tuple[Handler, Sequence[Command[Any]]]:
        """The handler for one call, and the commands of that call, which are there when it is over."""
        if self._given is None:
            return self._handler, ()
        made, commands = cast(FunctionType, self._handler), list[Command[Any]]()
        cells = list(made.__closure__ or ())
        cells[self._place] = CellType(commands)
        copy = FunctionType(made.__code__, made.__globals__, made.__name__, made.__defaults__, tuple(cells))
        return cast(Handler, copy), commands

    def give(self, commands: Sequence[Command[Any]]) -> None:
        """Have `commands` update the state, and no others."""
        if self._given is not None:
            self._given[:] = commands


def spent(commands: Iterable[Command[Any]]) -> dict[str, Entry]:
    """What `commands` tell under `tts_budgets`, as one value."""
    told: dict[str, Entry] = {}
    for command in commands:
        if isinstance(command.update, dict) and BUDGETS in command.update:
            told = merge_budgets(told, command.update[BUDGETS])
    return told


def writable(command: Command[Any], serde: SerializerProtocol) -> Command[Any]:
    """`command` without the keys of its update whose values `serde` cannot write."""
    update: Any = command.update
    if _writes(update, serde):
        return command
    if isinstance(update, dict):
        update = {key: value for key, value in update.items() if _writes(value, serde)}
    elif isinstance(update, (list, tuple)):
        update = [pair for pair in update if _writes(pair, serde)]
    else:
        update = None
    return replace(command, update=update)


def _writes(value: Any, serde: SerializerProtocol) -> bool:
    try:
        serde.dumps_typed(value)
    except Exception:  # foreign code: every serializer raises what it likes
        return False
    return True
