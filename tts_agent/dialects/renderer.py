"""The chat template of a Hugging Face folder: messages in, text out."""

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tts_agent.errors import ConfigError, ModelError

Chat = Sequence[Mapping[str, Any]]
"""Messages as templates read them: `role`, `content`, and what else a role has (`tool_calls`, `tool_call_id`)."""

FAILURES = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError)
"""What the code of a template may raise."""


class Renderer:
    """Renders chats as the folder's template says, as `transformers` would.

    `today` is the date that templates may write into the prompt; without it they see no clock, so that a prompt
    depends on its messages alone. `variables` are given to the template as they are, such as `enable_thinking`.
    Raises `ModelError` if the folder has no template, or one that cannot be read.
    """

    def __init__(
        self, folder: str | Path, *, today: datetime.date | None = None, variables: Mapping[str, Any] | None = None
    ) -> None:
        self._folder = Path(folder)
        config = read_json(self._folder / "tokenizer_config.json")
        self.sources = read_templates(self._folder)
        """The templates' own text by name; `tool_use`, where there is one, is for chats with tools."""
        if not self.sources:
            raise ModelError(
                f"model folder {str(folder)!r} has no chat template (chat_template.jinja, or 'chat_template' in "
                "tokenizer_config.json); use the folder of an instruction-tuned model"
            )
        environment = _environment(today)
        self._templates: dict[str, jinja2.Template] = {}
        for name, source in self.sources.items():
            try:
                self._templates[name] = environment.from_string(source)
            except jinja2.TemplateSyntaxError as error:
                raise ModelError(
                    f"model folder {str(folder)!r}: its chat template cannot be read, line {error.lineno}: {error}"
                ) from error
        self.special = {name: text for name, value in config.items() if (text := _special(name, value)) is not None}
        """Special tokens by the names that templates know them by, such as `bos_token`."""
        self.dated = any("strftime_now" in source for source in self.sources.values())
        """Whether a template asks for the date."""
        self._variables = {**self.special, **(variables or {})}

    def render(self, chat: Chat, *, tools: Sequence[Mapping[str, Any]] = (), generation: bool) -> str:
        """The text of `chat`, with the beginning of the model's turn after it if `generation`.

        Raises `ConfigError` if the template refuses the chat or fails.
        """
        template = self._templates["tool_use" if tools and "tool_use" in self._templates else "default"]
        try:
            return template.render(
                messages=[dict(message) for message in chat],
                tools=[dict(tool) for tool in tools] or None,
                documents=None,
                add_generation_prompt=generation,
                **self._variables,
            )
        except FAILURES as error:
            roles = ", ".join(str(message["role"]) for message in chat)
            hint = "; it writes the date: pass today=" if "strftime_now" in str(error) else ""
            raise ConfigError(
                f"the chat template of {str(self._folder)!r} fails for messages of {roles}: "
                f"{type(error).__name__}: {error}{hint}"
            ) from error


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what the model wrote, for training; here it only groups."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


def _environment(today: datetime.date | None) -> jinja2.Environment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    if today is not None:
        environment.globals["strftime_now"] = _clock(today)
    return environment


def _clock(today: datetime.date) -> Callable[[str], str]:
    moment = datetime.datetime.combine(today, datetime.time())
    return moment.strftime


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # NOTE: the filter of jinja2 itself escapes for HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(reason: str) -> None:
    raise jinja2.TemplateError(reason)


def _special(name: str, value: Any) -> str | None:
    """The text of a special token as tokenizer_config.json writes it; None for another entry."""
    if not name.endswith("_token"):
        return None
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def read_templates(folder: Path) -> dict[str, str]:
    """The folder's chat templates by name, `default` among them; empty if it has none.

    Raises `ModelError` if they cannot be read.
    """
    file = folder / "chat_template.jinja"
    if file.is_file():
        more = sorted((folder / "additional_chat_templates").glob("*.jinja"))
        files = {"default": file} | {path.stem: path for path in more}
        try:
            return {name: path.read_text(encoding="utf-8") for name, path in files.items()}
        except ValueError as error:
            raise ModelError(f"{str(file)!r} is no text in UTF-8: {error}; copy the file again") from error
    found = read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(found, str):
        return {"default": found}
    if not found:
        return {}
    try:
        sources = {str(entry["name"]): str(entry["template"]) for entry in found}
    except (TypeError, KeyError) as error:
        raise ModelError(
            f"model folder {str(folder)!r}: 'chat_template' in tokenizer_config.json is neither a text nor a list of "
            "names and templates; copy the file again"
        ) from error
    return {"default": next(iter(sources.values())), **sources}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises `ModelError` if there is none."""
    if not path.is_file():
        raise ModelError(f"model folder {str(path.parent)!r} has no {path.name}; pass a complete model folder")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{str(path)!r} is not valid JSON: {error}; copy the file again") from error
    if not isinstance(data, dict):
        raise ModelError(f"{str(path)!r} is not a JSON object; copy the file again")
    return data
