"""Two workers: the requests of a tree reach the one that holds its prefix."""

import pytest

from benchmarks.sglang_workers import LEVELS, TREES, listed, routing, through
from tests.sglang.conftest import Spare
from tests.sglang.install import FOLDER, python
from tests.sglang.server import Server

LATER = TREES * (2 * LEVELS - 1)


async def test_a_list_of_addresses(pocket: Server, spare: Spare) -> None:
    row = await listed([pocket.address, spare.get().address], 0)
    assert row.later == LATER
    assert row.hits == LATER
    assert min(row.shares) > 0.1, "trees are spread"


@pytest.mark.parametrize("policy", ["cache_aware", "manual"])
async def test_the_router(pocket: Server, spare: Spare, policy: str) -> None:
    workers = [pocket.address, spare.get().address]
    with routing(python(FOLDER), policy, workers) as address:
        row = await through(policy, address, workers, 1 + len(policy))
    assert row.later == LATER
    assert row.rate >= 0.95
    assert min(row.shares) > 0.1, "trees are spread"
