"""One sample of a request, over the pieces in which the server says it."""

from dataclasses import dataclass

from tts_agent.engines.sglang.reply import Reply
from tts_agent.usage import ZERO, Usage


@dataclass(slots=True, eq=False)
class Branch:
    """One sample. `ids` are of the pieces that have ended, `running` what the piece under way has told."""

    index: int
    seed: int
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    computed: int = 0  # prompt tokens that were run, over all pieces
    begun: bool = False
    running: Reply | None = None

    def usage(self, prompt: int) -> Usage:
        """What it has consumed so far."""
        if not self.begun:
            return ZERO
        said = len(self.ids) + (len(self.running.ids) if self.running else 0)
        computed = self.computed + (self._own(self.running) if self.running else 0)
        return Usage(computed, max(prompt - computed, 0), said, max(said - 1, 0))

    def _own(self, reply: Reply) -> int:
        """Tokens that the piece of `reply` ran beside those that it decoded."""
        # NOTE: a sample that was thrown out for want of room is computed again, from the cache where that still has it;
        # how much the server does not say, so it is all of it.
        own = reply.prompt - reply.cached + reply.again * (reply.prompt + len(reply.ids))
        # The last token of the piece before is run by this one instead of a decoding step.
        return own - 1 if self.ids else own

    def take(self, reply: Reply, logprobs: tuple[float, ...]) -> None:
        """The piece of `reply` has ended."""
        self.computed += self._own(reply)
        self.ids += reply.ids
        self.logprobs += logprobs
        self.running = None

    def cut(self, end: int) -> None:
        """Only the first `end` ids count; the others were computed for nothing."""
        self.computed += len(self.ids) - end
        self.ids, self.logprobs = self.ids[:end], self.logprobs[:end]
