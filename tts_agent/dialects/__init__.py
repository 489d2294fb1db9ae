"""Dialects: how models read conversations, made from their chat templates."""

from tts_agent.dialects.calls import CallFormat
from tts_agent.dialects.chat import ChatDialect
from tts_agent.dialects.dialect import TemplateDialect
from tts_agent.dialects.findings import Finding

__all__ = ("CallFormat", "ChatDialect", "Finding", "TemplateDialect")
