"""The step loop: admits requests, runs all of them through the model together, samples, and answers.

One step is one forward pass over the next token of every live branch and a chunk of every prompt and question
that is not cached yet. A request is admitted only when its longest course fits the cache beside what was promised
to others, so nothing that runs is ever evicted or computed twice; what does not fit waits in order.

Nobody waits for somebody else's many: a request without a branch gets its first before others get more, then the one
with the fewest gets the next; prompts share a step's tokens.
"""

import time
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tts_agent.engines.base import Completion, FinishReason, HiddenState, LabelScores
from tts_agent.engines.embedded.attention import Plan
from tts_agent.engines.embedded.counters import Counters
from tts_agent.engines.embedded.grouping import Row, groups
from tts_agent.engines.embedded.model import Model
from tts_agent.engines.embedded.pool import SlotPool
from tts_agent.engines.embedded.radix import Node, RadixTree, Slots
from tts_agent.engines.embedded.request import Branch, Chunk, Mailbox, Message, Question, Request, Said, Sample
from tts_agent.engines.embedded.sampler import draw, uniforms
from tts_agent.errors import EngineUnavailable
from tts_agent.usage import ZERO, Usage

LEAST_CHUNK = 32
"""Tokens of a prompt that a step computes at least, however many prompts there are."""


class Scheduler:
    """All state of the engine; used by one thread. Answers collect in `outbox`."""

    def __init__(
        self, model: Model, *, cache_tokens: int, max_branches: int, step_tokens: int, wait_seconds: float = 600.0
    ) -> None:
        self.tree = RadixTree()
        self.pool = SlotPool(model.shape, cache_tokens, model.device)
        self.outbox: list[tuple[Mailbox, Message]] = []
        self._model = model
        self._max_branches = max_branches
        self._step_tokens = step_tokens
        self._wait_seconds = wait_seconds
        self._queue: deque[Request] = deque()  # not admitted yet
        self._prompts: list[Request] = []  # admitted, not all computed
        self._samples: list[Sample] = []  # admitted, not finished
        self._branches: list[Branch] = []
        self._promised = 0  # slots that admitted work may still take
        self._computing: set[tuple[Node, int]] = set()  # where a prompt continues the tree right now
        self._totals = dict.fromkeys(("computed", "cached", "generated", "requests", "forwards", "evicted"), 0)

    @property
    def busy(self) -> bool:
        return bool(self._queue or self._prompts or self._samples)

    @property
    def counters(self) -> Counters:
        return Counters(
            **self._totals,
            resident=self.tree.resident,
            in_use=self.pool.capacity - self.pool.free - self.tree.evictable,
        )

    def submit(self, *requests: Request) -> None:
        """Queue `requests`; the next step sees them."""
        now = time.monotonic()
        for request in requests:
            request.since = now
        self._queue.extend(requests)

    def abort(self, request: Request) -> Usage:
        """Stop what runs of `request` and free its slots; returns what that had consumed."""
        if request in self._queue:
            self._queue.remove(request)
            return ZERO
        if request in self._prompts:
            self._prompts.remove(request)
            self._computing.discard(_frontier(request))
            self._promised -= request.left
            if isinstance(request, Question):
                self._promised -= request.room
                self._unlock(request)
                self._totals["cached"] += request.cached
                return request.usage
        if not isinstance(request, Sample) or request not in self._samples:
            return ZERO
        usage = ZERO if request.told else self._prompt_usage(request)
        for branch in request.branches:
            usage += branch.usage
            self.pool.give(branch.slots[: branch.run])
            self._promised -= branch.unused
        self._branches = [branch for branch in self._branches if branch.request is not request]
        self._samples.remove(request)
        self._unlock(request)
        return usage

    def flush(self, mailbox: Mailbox) -> None:
        """Evict everything that is not in use, and say so."""
        self._evict(self.tree.evictable)
        self.outbox.append((mailbox, self.counters))

    def close(self, reason: str) -> None:
        """Tell every waiting request that nobody will answer it."""
        for request in {*self._queue, *self._prompts, *self._samples}:
            self.outbox.append((request.mailbox, EngineUnavailable(reason)))
        self._queue.clear()

    def step(self) -> None:
        """Advance everything by one token or chunk."""
        self._admit()
        if not self.busy:
            return
        asked = self._forward()
        branches = [branch for branch in self._branches if not branch.request.left]
        # NOTE: holds while admission keeps its promises; a broken one must not become a silent endless loop.
        assert branches or asked or self._prompts, "the scheduler is busy and has nothing to run"
        if branches or asked:
            self._answer(branches, asked)

    # Admission

    def _admit(self) -> None:
        for sample in self._samples:
            if not sample.branches:
                self._open(sample)
        full = False
        waiting: deque[Request] = deque()
        for request in self._queue:
            if full and isinstance(request, Sample):
                waiting.append(request)
                continue
            node = self.tree.find(request.ids)
            if node.depth < len(request.ids) and (node, request.ids[node.depth]) in self._computing:
                waiting.append(request)  # somebody computes the same tokens: in a moment they are cached
            elif self._fits(request, node):
                self._start(request, node)
            else:
                waiting.append(request)
                full = True
        self._queue = waiting
        if full:
            # What waits comes before more branches of what runs; a question needs its slots for one step only.
            self._give_up()
        else:
            self._fill()

    def _give_up(self) -> None:
        """Tell those that have waited too long."""
        latest = time.monotonic() - self._wait_seconds
        for request in [request for request in self._queue if request.since < latest]:
            self._queue.remove(request)
            reason = (
                f"no room for one more branch within wait_seconds={self._wait_seconds!r}: others use the cache of "
                f"cache_tokens={self.pool.capacity!r} or all of max_branches={self._max_branches!r}; "
                "make them larger or ask for less at once"
            )
            self.outbox.append((request.mailbox, EngineUnavailable(reason)))

    def _fill(self) -> None:
        """Make branches of waiting samples as long as they fit, always of the request that has the fewest."""
        waiting = [sample for sample in self._samples if sample.waiting]
        while waiting and self._open(fewest := min(waiting, key=lambda sample: len(sample.branches))):
            if not fewest.waiting:
                waiting.remove(fewest)

    def _available(self) -> int:
        """Slots that are free or can be freed, less what was promised."""
        return self.pool.free + self.tree.evictable - self._promised

    def _fits(self, request: Request, node: Node) -> bool:
        if isinstance(request, Sample) and len(self._branches) >= self._max_branches:
            return False
        need = len(request.ids) - node.depth + request.room
        return need + self.tree.unlocked(node) <= self._available()

    def _start(self, request: Request, node: Node) -> None:
        self.tree.lock(node)
        request.node = node
        request.cached = node.depth
        self._promised += request.left + (request.room if isinstance(request, Question) else 0)
        self._totals["requests"] += 1
        if request.left or isinstance(request, Question):
            self._prompts.append(request)
        if request.left:
            self._computing.add(_frontier(request))
        if isinstance(request, Sample):
            self._samples.append(request)
            self._open(request)

    def _open(self, request: Sample) -> bool:
        """Make the next waiting sample a branch, if there is one and it fits."""
        if not request.waiting or len(self._branches) >= self._max_branches or request.room > self._available():
            return False
        self._branches.append(Branch.next_of(request))
        self._promised += request.room
        return True

    # The forward pass

    def _forward(self) -> list[tuple[Question, Tensor]]:
        """Run the step's tokens; returns the questions that are complete with the hidden states that answer each."""
        decoded = [branch for branch in self._branches if branch.ids]
        chunks = self._chunks()
        slots = self._take(len(decoded) + sum(chunk.size for chunk in chunks))
        rows: list[tuple[Node, Row]] = []
        for at, branch in enumerate(decoded):
            branch.slots[branch.run] = slots[at]
            rows.append((_node(branch.request), _branch_row(branch)))
        at = len(decoded)
        for chunk in chunks:
            chunk.place(slots[at : at + chunk.size])
            at += chunk.size
            rows.extend((_node(chunk.prompt), row) for row in chunk.rows if row.ids)
        hidden = self._run(rows) if rows else torch.empty(0)
        for branch in decoded:
            branch.run += 1
        done = [chunk for chunk in chunks if self._advance(chunk)]
        return [(chunk.prompt, self._read(chunk, hidden)) for chunk in done if isinstance(chunk.prompt, Question)]

    def _read(self, chunk: Chunk, hidden: Tensor) -> Tensor:
        """The hidden states `[1 + tokens of heads, hidden]` after a question and after each token of its heads."""
        first, *heads = chunk.rows
        asked = hidden[first.last] if first.ids else self.pool.hidden[_node(chunk.prompt).last_slot]
        return torch.cat([asked.unsqueeze(0), *(hidden[row.last + 1 - len(row.ids) : row.last + 1] for row in heads)])

    def _chunks(self) -> list[Chunk]:
        """The tokens of each prompt to compute in this step."""
        budget = self._step_tokens
        chunks = []
        for place, prompt in enumerate(self._prompts):
            if budget <= 0:
                break
            share = -(-budget // (len(self._prompts) - place))
            chunks.append(Chunk.next_of(prompt, min(budget, max(share, LEAST_CHUNK))))
            budget -= max(chunks[-1].size, 1)
        return chunks

    def _take(self, count: int) -> Slots:
        """Slots that were promised; evicts if none are free."""
        if count > self.pool.free:
            self._evict(count - self.pool.free)
        self._promised -= count
        return self.pool.take(count)

    def _evict(self, count: int) -> None:
        freed = self.tree.evict(count)
        self._totals["evicted"] += len(freed)
        self.pool.give(freed)

    def _run(self, rows: Sequence[tuple[Node, Row]]) -> Tensor:
        plan = Plan(groups(rows), self.pool, kv_heads=self._model.shape.kv_heads)
        hidden = self._model.forward(plan.ids, plan.positions, plan)
        self.pool.hidden.index_copy_(0, plan.slots, hidden)
        self._totals["computed"] += len(plan.ids)
        self._totals["forwards"] += 1
        return hidden

    def _advance(self, chunk: Chunk) -> bool:
        """Enter a computed chunk in the tree; returns whether its prompt is complete."""
        prompt, node, kept = chunk.prompt, _node(chunk.prompt), chunk.kept
        if kept:
            self._computing.remove(_frontier(prompt))
            end, spare = self.tree.insert(node, chunk.ids[:kept], chunk.rows[0].slots[:kept])
            self.tree.lock(end)
            self.tree.unlock(node)
            self.pool.give(spare)
            prompt.node = end
        self.pool.give(chunk.spare)
        prompt.computed += chunk.size
        if _node(prompt).depth < len(prompt.ids):
            self._computing.add(_frontier(prompt))
            return False
        self._prompts.remove(prompt)
        if isinstance(prompt, Question):
            self._unlock(prompt)
        return True

    def _unlock(self, request: Request) -> None:
        self.tree.unlock(_node(request))

    # Answers

    def _prompt_usage(self, request: Sample) -> Usage:
        usage = request.take_prompt_usage()
        self._totals["cached"] += usage.prompt_cached
        return usage

    def _answer(self, branches: list[Branch], asked: list[tuple[Question, Tensor]]) -> None:
        last = torch.tensor([branch.last_slot for branch in branches], dtype=torch.int64, device=self.pool.device)
        hidden = self.pool.hidden.index_select(0, last)
        if asked:
            hidden = torch.cat((hidden, *(states for _, states in asked)))
        logits = self._model.logits(hidden)
        if logits.device.type == "mps":
            logits = logits.cpu()  # a cumulative distribution wants float64, which MPS has not
        if asked:
            scores = torch.log_softmax(logits[len(branches) :], dim=-1)
            parts = torch.split(scores, [len(states) for _, states in asked])
            for (question, states), part in zip(asked, parts, strict=True):
                self._totals["cached"] += question.cached
                if question.reads:
                    answer: Message = HiddenState(tuple(states[0].tolist()), question.usage)
                else:
                    answer = LabelScores(question.score(part), question.usage)
                self.outbox.append((question.mailbox, answer))
        if branches:
            self._extend(branches, logits[: len(branches)])

    def _extend(self, branches: list[Branch], logits: Tensor) -> None:
        """Sample the next token of each branch and end those that are complete."""
        seeds = np.array([branch.seed for branch in branches], dtype=np.uint64)
        positions = np.array([len(branch.ids) for branch in branches], dtype=np.uint64)
        wishes = [branch.wish for branch in branches]
        ended: set[Branch] = set()
        for branch, token, logprob in zip(branches, *draw(logits, wishes, uniforms(seeds, positions)), strict=True):
            if finish := branch.say(token, logprob):
                self._end(branch, finish)
                ended.add(branch)
            elif branch.request.tells:
                self.outbox.append((branch.request.mailbox, Said(branch.index, tuple(branch.ids))))
        self._totals["generated"] += len(branches)
        if ended:
            self._branches = [branch for branch in self._branches if branch not in ended]

    def _end(self, branch: Branch, finish: FinishReason) -> None:
        """Answer with a finished branch; its tokens stay in the tree for children and questions."""
        request = branch.request
        request.branches.remove(branch)
        self._promised -= branch.unused
        _, spare = self.tree.insert(_node(request), tuple(branch.ids[: branch.run]), branch.slots[: branch.run])
        self.pool.give(spare)
        completion = Completion(
            index=branch.index,
            ids=tuple(branch.ids),
            finish=finish,
            usage=branch.usage + self._prompt_usage(request),
            logprobs=tuple(branch.logprobs),
        )
        self.outbox.append((request.mailbox, completion))
        if not request.branches and not request.waiting:
            self._samples.remove(request)
            self._unlock(request)


def _node(request: Request) -> Node:
    assert request.node is not None, "request is not admitted"
    return request.node


def _frontier(prompt: Request) -> tuple[Node, int]:
    """Where the prompt continues the tree: the end of its cached part and the next id."""
    node = _node(prompt)
    return node, prompt.ids[node.depth] if node.depth < len(prompt.ids) else -1


def _branch_row(branch: Branch) -> Row:
    run = branch.run
    start = len(branch.request.ids) + run
    return Row(branch.slots[:run], (branch.ids[-1],), start, branch.slots[run : run + 1])
