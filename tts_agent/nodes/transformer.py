"""The progress of searches as a projection of `stream_events(version="v3")`."""

from typing import Any, ClassVar

from langgraph.stream import ProtocolEvent, StreamChannel, StreamTransformer

from tts_agent.nodes.progress import Progress


class TTSTransformer(StreamTransformer):
    """Gives a run the attribute `tts`: what the searches of its planning nodes tell, as `Progress`.

    `graph.compile(transformers=[TTSTransformer])`, or `graph.stream_events(..., version="v3",
    transformers=[TTSTransformer])` for one run; agents with a search as middleware have it already. As with `custom`,
    what a sub-graph's searches tell is on the handle of the sub-graph.
    """

    _native: ClassVar[bool] = True
    required_stream_modes: ClassVar[tuple[str, ...]] = ("custom",)

    def __init__(self, scope: tuple[str, ...] = ()) -> None:
        super().__init__(scope)
        self._progress: StreamChannel[Progress] = StreamChannel()

    def init(self) -> dict[str, Any]:
        """See `StreamTransformer.init`."""
        return {"tts": self._progress}

    def process(self, event: ProtocolEvent) -> bool:
        """See `StreamTransformer.process`; nothing is taken off the stream."""
        params = event["params"]
        if event["method"] == "custom" and tuple(params["namespace"]) == self.scope and Progress.told(params["data"]):
            self._progress.push(Progress.read(params["data"]))
        return True
