"""Which server a request goes to: all of one tree to one, different trees to different ones."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b

from tts_agent.engines.sglang.memory import Homes, Place
from tts_agent.engines.sglang.worker import Worker
from tts_agent.errors import EngineUnavailable


class Pool:
    """Servers of the same model, chosen by rendezvous hashing (Thaler and Ravishankar 1998) of the tree.

    A tree is named by the root with which it first appeared here; whatever extends something that was computed belongs
    to the same tree. When a server stops answering, its trees move to the next in their own order, and stay there:
    their prefixes are then at home elsewhere.
    """

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = tuple(workers)
        self._homes = Homes()

    def tree(self, ids: tuple[int, ...]) -> str:
        """The name of the tree that a prefix belongs to."""
        place = self._homes.find(ids)
        return place.tree if place is not None else blake2b(repr(ids).encode(), digest_size=8).hexdigest()

    def order(self, ids: tuple[int, ...]) -> list[Worker]:
        """The servers in the order in which they are asked to continue a prefix."""
        place = self._homes.find(ids)
        tree = place.tree if place is not None else self.tree(ids)
        ranked = sorted(self.workers, key=lambda worker: _weight(tree, worker.address), reverse=True)
        if place is not None:
            ranked.sort(key=lambda worker: worker.number != place.worker)
        return sorted(ranked, key=lambda worker: not worker.up)

    async def choose(self, ids: tuple[int, ...]) -> Worker:
        """The first server that answers. Raises `EngineUnavailable` if none does."""
        problem: EngineUnavailable | None = None
        for worker in self.order(ids):
            try:
                await worker.check()
                return worker
            except EngineUnavailable as error:
                problem = problem or error
        assert problem is not None
        raise problem

    def learn(self, worker: Worker, tree: str, ids: tuple[int, ...], *, run: int) -> None:
        """`worker` has the first `run` of `ids` in its cache."""
        worker.memory.learn(ids[:run])
        self._homes.learn(ids, Place(tree, worker.number))

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
