"""Chat models of LangChain over the engines of this package."""

from tts_agent.chat_models.sglang import ChatSGLang, ContextOverflow

__all__ = ("ChatSGLang", "ContextOverflow")
