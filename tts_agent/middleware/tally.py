"""What a part of an agent's work was charged, in whatever budgets there are around it."""

from contextvars import Context, ContextVar

from tts_agent.budget import PICO, Amounts, Ledger
from tts_agent.usage import ZERO, Usage


class Tally:
    """Counts what is charged in the contexts in which it was begun, and in the tasks and threads that copy them.

    One that is made inside another counts for that one too.
    """

    def __init__(self) -> None:
        self._around = current_tally()
        self._scopes: dict[int, Ledger] = {}  # by the identity of the ledger around, which the scope keeps alive
        self._known = ZERO

    def begin(self, context: Context) -> None:
        """Count what is charged in `context` from now on."""
        context.run(_tally.set, self)

    def scope(self, ledger: Ledger) -> Ledger:
        """The scope inside `ledger` to which is charged what is counted here."""
        with ledger.held():
            scope = self._scopes.get(id(ledger))
            if scope is None:
                around = ledger if self._around is None else self._around.scope(ledger)
                scope = self._scopes[id(ledger)] = Ledger(name=ledger.name, parent=around)
            return scope

    def add(self, usage: Usage) -> None:
        """Count what was charged in another process."""
        self._known += usage
        if self._around is not None:
            self._around.add(usage)

    @property
    def charged(self) -> Usage:
        """The sum, without seconds. What was lost counts as used, and so does what is still under way, in full."""
        total = self._known
        for scope in list(self._scopes.values()):
            with scope.held():
                total += scope.spent + _worth(scope.lost.plus(scope.reserved))
        return total._replace(seconds=0.0)


_tally: ContextVar[Tally | None] = ContextVar("tts_agent_tally", default=None)


def current_tally() -> Tally | None:
    """The innermost tally of this context."""
    return _tally.get()


def _worth(amounts: Amounts) -> Usage:
    """A usage of just these amounts."""
    calls, generated, total, computed, picodollars = amounts
    prompt = total - generated
    ran = min(prompt, computed)
    return Usage(ran, prompt - ran, generated, computed - ran, calls, dollars=picodollars / PICO)
