"""SGLang servers, which compute each token of a tree once."""

from tts_agent.engines.sglang.engine import SGLangEngine
from tts_agent.engines.sglang.http import HttpServer
from tts_agent.engines.sglang.info import LEAST_VERSION, TESTED_VERSION, ServerInfo
from tts_agent.engines.sglang.local import LocalServer
from tts_agent.engines.sglang.served import ServedEngine
from tts_agent.engines.sglang.stream import SGLangStream

__all__ = (
    "LEAST_VERSION",
    "TESTED_VERSION",
    "HttpServer",
    "LocalServer",
    "SGLangEngine",
    "SGLangStream",
    "ServedEngine",
    "ServerInfo",
)
