"""Verifiers: how good a branch is."""

from tts_agent.verifiers.agreement import AgreementVerifier
from tts_agent.verifiers.base import Scope, Verifier
from tts_agent.verifiers.checks import Cascade, CheckVerifier, RandomVerifier
from tts_agent.verifiers.labels import LabelVerifier

__all__ = ("AgreementVerifier", "Cascade", "CheckVerifier", "LabelVerifier", "RandomVerifier", "Scope", "Verifier")
