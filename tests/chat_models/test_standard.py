"""LangChain's standard suites for chat models, over HTTP on this machine.

What they skip, and why:

* images, audio, video, PDF, blocks of Anthropic's: the engines here read text only;
* another model with a call: a server has one model, so that `model=` of a call is refused if it is another;
* serialization: a model holds connections, and is made again from its settings;
* the time of streams over recorded HTTP (VCR): nothing is recorded, the server is on this machine.
"""

from collections.abc import AsyncIterator, Iterator
from typing import Any, ClassVar

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from tests.chat_models.server import ChatServer
from tts_agent.chat_models import ChatSGLang


class Standard:
    """What the suites ask about the model."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatSGLang

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supported_usage_metadata_details(self) -> dict[str, list[str]]:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}


class TestUnit(Standard, ChatModelUnitTests):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "served"}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        env = {"SGLANG_BASE_URL": "http://127.0.0.1:9", "SGLANG_API_KEY": "secret"}
        return env, {}, {"base_url": "http://127.0.0.1:9", "api_key": "secret"}


@pytest.fixture(scope="module")
def server() -> Iterator[ChatServer]:
    server = ChatServer()
    yield server
    server.close()


class Connected(ChatSGLang):
    """Remembers its instances, so that they can be closed."""

    opened: ClassVar[list["Connected"]] = []

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        self.opened.append(self)


class TestIntegration(Standard, ChatModelIntegrationTests):
    address: str

    @pytest.fixture(autouse=True)
    async def serve(self, server: ChatServer) -> AsyncIterator[None]:
        self.address = server.address
        yield
        while Connected.opened:
            model = Connected.opened.pop()
            model.close()
            await model.aclose()

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return Connected

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"base_url": self.address}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> Any:
        model = Connected(base_url=self.address)
        long, question = "A long text. " * 50, "What does this say?"
        model.invoke(long)
        if not stream:
            return model.invoke(long + question)
        first, *rest = model.stream(long + question)
        return sum(rest, first)
