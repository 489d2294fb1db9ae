"""What a part of a run was charged is counted once, whichever budgets are around it."""

from contextvars import copy_context

from hypothesis import given
from hypothesis import strategies as st

from tts_agent.budget import Amounts, Budget, Ledger
from tts_agent.middleware.tally import Tally, current_tally
from tts_agent.usage import Usage

COUNT = st.integers(0, 1000)
USAGE = st.builds(
    Usage, COUNT, COUNT, COUNT, COUNT, COUNT, dollars=st.integers(0, 10**15).map(lambda picos: picos / 10**12)
)


@given(used=USAGE, lost=USAGE, open_=USAGE)
def test_what_was_lost_or_is_under_way_counts_as_used(used: Usage, lost: Usage, open_: Usage) -> None:
    tally, ledger = Tally(), Ledger(Budget())
    scope = tally.scope(ledger)
    for number, usage in enumerate((used, lost, open_)):
        scope.reserve(number, usage)
    scope.charge(0, used)
    scope.lose(1)
    whole = Amounts.of(used).plus(Amounts.of(lost)).plus(Amounts.of(open_))
    assert all(abs(a - b) <= 1 for a, b in zip(Amounts.of(tally.charged), whole, strict=True))  # dollars are rounded
    assert Amounts.of(tally.charged)[:4] == whole[:4] and ledger.committed == whole


def test_one_inside_another_counts_for_it_too() -> None:
    outer, ledger = Tally(), Ledger(Budget(calls=9))
    context = copy_context()
    outer.begin(context)
    inner = context.run(Tally)
    inner.scope(ledger).reserve(1, Usage(calls=2))
    inner.scope(ledger).charge(1, Usage(calls=2))
    inner.add(Usage(calls=3, seconds=1.0))
    outer.scope(ledger).reserve(2, Usage(calls=1))
    assert (inner.charged.calls, outer.charged.calls, outer.charged.seconds) == (5, 6, 0.0)
    assert ledger.spent.calls == 2 and current_tally() is None and context.run(current_tally) is outer
