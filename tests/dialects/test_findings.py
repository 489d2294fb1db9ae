"""What is said about templates at the start."""

import datetime
from typing import Any

import pytest

from tests import models
from tests.dialects.world import DATED, TokenEngine, add, llama3, mistral, thinker, variant
from tts_agent.dialects import Finding, TemplateDialect
from tts_agent.errors import ModelError


def findings(folder: Any, *, tools: bool = True, **options: Any) -> dict[str, Finding]:
    dialect = TemplateDialect(TokenEngine(folder, **options), folder, tools=[add] if tools else [])
    return {finding.subject: finding for finding in dialect.findings}


def test_a_template_that_keeps_history_has_nothing_to_tell_of_it() -> None:
    assert set(findings(models.qwen())) == {"tools"}
    assert findings(models.qwen())["tools"].text == "tool calls are written in the format 'hermes'"
    assert set(findings(models.llama(), tools=False, end_ids=(2,))) == set()


def test_dropped_reasoning_is_reported_with_its_price() -> None:
    found = findings(models.forgetful_qwen())["history"]
    assert "drops reasoning once a human writes again" in found.text
    assert found.recomputed > 0 and str(found.recomputed) in found.text


def test_reordered_tools_are_reported_with_their_price() -> None:
    found = findings(mistral(), end_ids=())
    assert "rewrites what stood before once a human writes again" in found["history"].text
    # The tools are told again, and so is all that stands after them.
    assert found["history"].recomputed > 20
    assert "history" not in findings(mistral(), tools=False, end_ids=())


def test_reasoning_that_is_never_shown_again_is_reported() -> None:
    found = TemplateDialect(TokenEngine(thinker()), thinker()).findings
    assert [finding.subject for finding in found] == ["reasoning", "history", "reasoning"]
    assert "never shows reasoning" in found[0].text
    assert "the prompt opens the reasoning" in found[2].text


def test_an_end_token_that_the_settings_do_not_name_is_added_and_reported() -> None:
    engine = TokenEngine(llama3(), end_ids=(1,))
    dialect = TemplateDialect(engine, llama3())
    assert dialect.end_ids == (1, engine.tokens.special["<|eot_id|>"])
    assert [finding.subject for finding in dialect.findings] == ["end"]
    assert "'<|eot_id|>'" in dialect.findings[0].text


def test_a_template_that_asks_for_the_date_is_reported() -> None:
    today = datetime.date(2025, 3, 9)
    dialect = TemplateDialect(TokenEngine(variant(DATED)), variant(DATED), today=today)
    assert "today= says which" in {finding.subject: finding.text for finding in dialect.findings}["date"]


def test_a_special_token_that_only_results_need_is_missed() -> None:
    folder = variant(models.CHATML_KEEPS.replace("\n<tool_response>", "<|tool_out|>\n<tool_response>"))
    assert findings(folder, tools=False) == {}
    with pytest.raises(ModelError, match=r"writes \['<\|tool_out\|>'\], which its tokenizer does not have"):
        findings(folder)


def test_a_template_that_ends_turns_with_text_is_reported() -> None:
    plain = "{%- for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{%- endfor %}"
    assert "plain text" in findings(variant(plain), tools=False)["end"].text


@pytest.mark.parametrize(("folder", "form"), [(models.qwen, "hermes"), (llama3, "llama"), (mistral, "mistral")])
def test_the_format_of_calls_is_that_of_the_template(folder: Any, form: str) -> None:
    assert repr(form) in findings(folder())["tools"].text
