"""Rendering is that of `transformers`, and what is wrong with a template is said."""

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.utils.function_calling import convert_to_openai_tool
from transformers import PreTrainedTokenizerFast

from tests import models
from tests.dialects.world import DATED, add, llama3, look_up, mistral, thinker, variant
from tts_agent.dialects.renderer import Renderer
from tts_agent.dialects.template import Template
from tts_agent.errors import ConfigError, ModelError

FOLDERS = {
    "qwen": models.qwen,
    "forgetful": models.forgetful_qwen,
    "llama": models.llama,
    "llama3": llama3,
    "mistral": mistral,
    "thinker": thinker,
}
TOOLS = [convert_to_openai_tool(add), convert_to_openai_tool(look_up)]
CALL = {"type": "function", "id": "a1b2c3d4e", "function": {"name": "add", "arguments": {"a": 1, "b": "é\"'<"}}}
LOOP = [
    {"role": "user", "content": "What is 1 + 2?"},
    {"role": "assistant", "content": "", "reasoning_content": "Easy.", "tool_calls": [CALL]},
    {"role": "tool", "content": "3", "tool_call_id": "a1b2c3d4e", "name": "add"},
]
PLAIN = [
    {"role": "user", "content": "Hi  \n"},
    {"role": "assistant", "content": "<think>\nHm\n</think>\n\nHello."},
    {"role": "user", "content": "天気は? 👍🏽"},
]


def reference(folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(folder)


CHATS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]] | None]] = {
    "plain": (PLAIN, None),
    "told": (PLAIN, TOOLS),
    "loop": (LOOP, TOOLS),
}


@pytest.mark.parametrize("generation", [True, False])
@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name in FOLDERS for kind in CHATS if (name, kind) != ("llama", "loop")]
)
def test_text_and_ids_are_those_of_transformers(name: str, kind: str, generation: bool) -> None:
    folder, (chat, tools) = FOLDERS[name](), CHATS[kind]
    tokenizer, template = reference(folder), Template(folder, tools=tools or ())
    options: dict[str, Any] = {"tools": tools, "add_generation_prompt": generation}
    text, mark = template.text(chat, generation=generation)
    assert text == tokenizer.apply_chat_template(chat, tokenize=False, **options)
    ids = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False, **options)
    assert list(template.tokens.encode(text, mark=mark)) == ids


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=5), st.sampled_from(sorted(FOLDERS)))
def test_any_harmless_text_becomes_the_ids_of_transformers(texts: list[str], name: str) -> None:
    chat = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
    folder = FOLDERS[name]()
    expected = reference(folder).apply_chat_template(chat, tokenize=True, return_dict=False, add_generation_prompt=True)
    assert list(Template(folder).prompt(chat)) == expected


def test_variables_reach_the_template() -> None:
    thinking = Template(models.qwen()).text(PLAIN, generation=True)[0]
    silent = Template(models.qwen(), variables={"enable_thinking": False}).text(PLAIN, generation=True)[0]
    assert silent == thinking + "<think>\n\n</think>\n\n"


def test_a_date_is_only_what_the_caller_says() -> None:
    folder = variant(DATED)
    with pytest.raises(ModelError, match="it writes the date: pass today="):
        Template(folder)
    text, _ = Template(folder, today=datetime.date(2025, 3, 9)).text(PLAIN, generation=True)
    assert text.startswith("Today is 2025-03-09")


def test_a_template_for_tools_is_used_for_tools() -> None:
    both = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    folder = variant("")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": both}))
    renderer = Renderer(folder)
    assert renderer.render(PLAIN, generation=True) == "plain"
    assert renderer.render(PLAIN, tools=TOOLS, generation=True) == "tools"


def test_a_refusal_of_the_template_names_the_roles() -> None:
    with pytest.raises(
        ConfigError, match="fails for messages of user, tool: TemplateError: this template knows no tool"
    ):
        Template(models.llama()).prompt([LOOP[0], LOOP[2]])


def without_template(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{}")


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def torn_tokenizer(folder: Path) -> None:
    whole = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(whole[: len(whole) // 2])


def empty_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def foreign_bytes(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe{{ messages }}")


def no_tokenizer_at_all(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')


def unnamed_templates(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"chat_template": ["{{ messages }}"]}')


def written(template: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "chat_template.jinja").write_text(template) and None


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (without_template, "has no chat template"),
        (without_tokenizer, "has no tokenizer.json"),
        (torn_tokenizer, "is not valid JSON"),
        (empty_tokenizer, "describes no tokenizer"),
        (no_tokenizer_at_all, "tokenizer.json' cannot be read"),
        (foreign_bytes, "is no text in UTF-8"),
        (unnamed_templates, "neither a text nor a list of names and templates"),
        (written("{% macro again(x) %}{{ again(x) }}{% endmacro %}{{ again(1) }}"), "RecursionError"),
        (written("{% if %}"), "cannot be read, line 1"),
        (written("{{ messages[0].name.first }}"), "UndefinedError"),
        (written("{{ 1 + 'a' }}"), "TypeError"),
        (written("<|im_start|>{{ messages | length }}"), "does not write once what the model said"),
        (
            written("{% for m in messages %}<|start|>{{ m.content }}{% endfor %}"),
            r"writes \['<\|start\|>'\], which its",
        ),
    ],
)
def test_a_broken_folder_is_refused_with_the_reason(damage: Callable[[Path], None], reason: str) -> None:
    folder = variant("<|im_start|>{{ messages[0].content }}")
    damage(folder)
    with pytest.raises(ModelError, match=reason):
        Template(folder)
