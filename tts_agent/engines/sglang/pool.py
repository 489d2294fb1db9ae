"""Which server a request goes to: all of one tree to one, different trees to different ones."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b

from tts_agent.engines.sglang.memory import ENTRIES, Recent, Trees
from tts_agent.engines.sglang.worker import Worker
from tts_agent.errors import EngineUnavailable


class Pool:
    """Servers of the same model, chosen by rendezvous hashing (Thaler and Ravishankar 1998) of the tree.

    When a server stops answering, its trees move to the next in their own order, and stay there: their prefixes have
    been computed again by then.
    """

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = tuple(workers)
        self._trees = Trees()
        self._homes: Recent[str, Worker] = Recent(ENTRIES)

    def tree(self, ids: tuple[int, ...]) -> str:
        """The name of the tree that a prefix belongs to."""
        return self._trees.name(ids)

    def order(self, ids: tuple[int, ...]) -> list[Worker]:
        """The servers in the order in which they are asked to continue a prefix."""
        tree = self.tree(ids)
        home = self._homes.get(tree)
        ranked = sorted(self.workers, key=lambda worker: _weight(tree, worker.address), reverse=True)
        return sorted(ranked, key=lambda worker: (not worker.up, worker is not home))

    async def choose(self, ids: tuple[int, ...]) -> Worker:
        """The first server that answers. Raises `EngineUnavailable` if none does."""
        problem: EngineUnavailable | None = None
        for worker in self.order(ids) if len(self.workers) > 1 else self.workers:
            try:
                await worker.check()
                return worker
            except EngineUnavailable as error:
                problem = problem or error
        assert problem is not None
        raise problem

    def learn(self, worker: Worker, tree: str, ids: tuple[int, ...], *, run: int) -> None:
        """`worker` has the first `run` of `ids`, which belong to `tree`, in its cache."""
        worker.memory.learn(ids[:run])
        self._trees.join(ids, tree)
        self._homes.put(tree, worker)

    @contextmanager
    def watching(self, worker: Worker) -> Iterator[None]:
        """Note that the worker does not answer if it turns out so."""
        try:
            yield
        except EngineUnavailable:
            worker.fail()
            raise


def _weight(tree: str, address: str) -> bytes:
    return blake2b(f"{tree} {address}".encode(), digest_size=8).digest()
