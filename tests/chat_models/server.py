"""A small HTTP server of SGLang's native API that holds conversations.

Its model does what it is told: where a grammar binds it, it says JSON of that schema; where it has tools and a human
asks, it calls the first; else it answers in words. A token is a byte. It renders ChatML and reads Hermes' tool calls.
The truth is the real server: see tests/sglang.
"""

import copy
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from os.path import commonprefix
from typing import Any

from tests.engines.sglang_server import RECORDED
from tts_agent.dialects.calls import read_calls

Json = dict[str, Any]
START, END = 256, 257
SPECIAL = {START: "<|im_start|>", END: "<|im_end|>"}
WORDS = "Hello, you there. Here are some words: Größe, 🦊."


def encode(text: str) -> list[int]:
    ids: list[int] = []
    for piece in re.split(r"(<\|im_start\|>|<\|im_end\|>)", text):
        special = next((token for token, said in SPECIAL.items() if said == piece), None)
        ids += piece.encode() if special is None else [special]
    return ids


def decode(ids: list[int], skip: bool = False) -> str:
    text, run = "", bytearray()
    for token in [*ids, -1]:
        if 0 <= token < 256:
            run.append(token)
            continue
        text, run = text + run.decode(errors="replace"), bytearray()
        text += "" if skip else SPECIAL.get(token, "")
    return text


def render(body: Json) -> str:
    """The conversation as text, up to where the model speaks."""
    text = ""
    if tools := body.get("tools"):
        text += f"<|im_start|>system\n<tools>{json.dumps(tools, ensure_ascii=False)}</tools><|im_end|>\n"
    for message in body["messages"]:
        calls = [call["function"] for call in message.get("tool_calls", ())]
        assert all(isinstance(call["arguments"], str) for call in calls)
        said = message["content"] + "".join(f"<tool_call>{json.dumps(call)}</tool_call>" for call in calls)
        text += f"<|im_start|>{message['role']}\n{said}<|im_end|>\n"
    thinks = (body.get("chat_template_kwargs") or {}).get("enable_thinking")
    return text + "<|im_start|>assistant\n" + ("<think>\n" if thinks else "")


def fill(schema: Json, text: str, root: Json | None = None) -> Any:
    """Something of `schema`; texts are what `text` has in quotes."""
    root = root or schema
    if "$ref" in schema:
        found: Any = root
        for part in schema["$ref"].lstrip("#/").split("/"):
            found = found[part]
        return fill(found, text, root)
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return fill(schema[key][0], text, root)
    if "const" in schema or "enum" in schema:
        return schema["const"] if "const" in schema else schema["enum"][0]
    if schema == {"type": "object"}:
        return dict.fromkeys(re.findall(r"'(\w+)'", text), "cats")
    if "properties" in schema or schema.get("type") == "object":
        parts = schema.get("properties", {})
        return {name: fill(part, text, root) for name, part in parts.items() if name in schema.get("required", parts)}
    if schema.get("type") == "array":
        return [fill(schema["items"], text, root)] if schema.get("minItems") else []
    quoted = re.search(r"'([^'\\]+)'", text)
    kinds = {"string": quoted[1] if quoted else "cats", "integer": 3, "number": 3.5, "boolean": True, "null": None}
    return kinds[schema.get("type", "string")]


def answer(prompt: str, params: Json) -> str:
    """What the model says after `prompt`."""
    asked = prompt.rpartition("<|im_start|>user\n")[2]
    if "json_schema" in params:
        return json.dumps(fill(json.loads(params["json_schema"]), asked), ensure_ascii=False)
    thought = "I think.\n</think>\n\n" if prompt.endswith("<think>\n") else ""
    tools = re.search(r"<tools>(.*)</tools>", prompt)
    if tools and "<|im_start|>tool" not in asked:
        function = json.loads(tools[1])[0]["function"]
        call = {"name": function["name"], "arguments": fill(function["parameters"], asked)}
        return f"{thought}I call it.\n<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"
    drawn = params.get("custom_params", {}).get("seed", "")
    return f"{thought}{WORDS}{drawn and f' [{drawn}]'}"


@dataclass
class Model:
    """What is served. `pace` is the time for a token in seconds, `says` overrules its answers."""

    info: Json = field(default_factory=lambda: copy.deepcopy(RECORDED["server_info"]))
    pace: float = 0.0
    says: str | None = None
    bodies: list[Json] = field(default_factory=list)
    known: list[tuple[int, ...]] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    aborted: set[str] = field(default_factory=set)

    def events(self, body: Json) -> Iterator[Json]:
        prompts, samples = [tuple(ids) for ids in body["input_ids"]], body["sampling_params"]
        rids = body.get("rid") or [str(place) for place in range(len(prompts))]
        self.running |= set(rids)
        for place, (ids, params, rid) in enumerate(zip(prompts, samples, rids, strict=True)):
            cached = min(max((len(commonprefix([ids, old])) for old in self.known), default=0), len(ids) - 1)
            for said, finish in self._say(ids, params, rid):
                if finish or len(said) == 1 or not len(said) % params.get("stream_interval", 1):
                    yield _event(place, rid, ids, said, cached, finish)
            self.known += [ids, ids + tuple(said)]
            self.running.discard(rid)

    def _say(self, ids: tuple[int, ...], params: Json, rid: str) -> Iterator[tuple[list[int], Json | None]]:
        most = params["max_new_tokens"]
        if not most:
            yield [], {"type": "length", "length": 0}
            return
        biased = [int(token) for token in params.get("logit_bias", {})]
        text = answer(decode(list(ids)), params) if self.says is None else self.says
        said = []
        for token in biased * most or [*encode(text), END]:
            time.sleep(self.pace)
            said.append(token)
            finish = self._finish(said, params, rid)
            yield list(said), finish
            if finish:
                return

    def _finish(self, said: list[int], params: Json, rid: str) -> Json | None:
        if rid in self.aborted:
            return {"type": "abort", "message": "Aborted", "status_code": None}
        if stop := next((text for text in params.get("stop", ()) if text in decode(said)), None):
            return {"type": "stop", "matched": stop}
        if said[-1] == END:
            return {"type": "stop", "matched": END}
        return {"type": "length", "length": len(said)} if len(said) == params["max_new_tokens"] else None


def _event(place: int, rid: str, ids: tuple[int, ...], said: list[int], cached: int, finish: Json | None) -> Json:
    made = copy.deepcopy(RECORDED["sample"][0])
    made |= {"index": place, "output_ids": said, "text": decode(said)}
    made["meta_info"] |= {"id": rid, "finish_reason": finish, "prompt_tokens": len(ids), "cached_tokens": cached}
    made["meta_info"]["completion_tokens"] = len(said)
    return made


class _Threads(ThreadingHTTPServer):
    daemon_threads = True


class ChatServer:
    """Serves `model` at `address` until it is closed. `info` overrules what it says of itself."""

    def __init__(self, **info: Any) -> None:
        self.model = Model()
        self.model.info |= {"tool_call_parser": "qwen25"} | info
        self._server = _Threads(("127.0.0.1", 0), _handler(self.model))
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _parsed(body: Json) -> Json:
    spoken = read_calls(body["text"], "hermes")
    calls = [{"tool_index": -1, "name": call.name, "parameters": json.dumps(call.args)} for call in spoken.calls]
    return {"normal_text": spoken.content, "calls": calls}


def _separated(body: Json) -> Json:
    # As the parser `qwen3` sees it: a tag anywhere makes reasoning of all before its end, and so does a tool call.
    text = body["text"]
    if "<think>" not in text:
        return {"reasoning_text": "", "text": text}
    while text.startswith("<think>"):
        text = text.removeprefix("<think>")
    end = "</think>" if "</think>" in text else "<tool_call>"
    reasoning, found, rest = text.partition(end)
    return {"reasoning_text": reasoning, "text": rest if end == "</think>" else found + rest}


def _handler(model: Model) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else every answer waits 40 ms for its second packet

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            found = {"/server_info": model.info, "/v1/loads": RECORDED["loads"]}.get(self.path)
            self._answer(200 if found is not None else 404, found)

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = json.loads(raw) if raw else {}
            match self.path:
                case "/tokenize":
                    self._answer(200, {"tokens": encode(render(body) if "messages" in body else body["prompt"])})
                case "/detokenize":
                    texts = [decode(ids, body["skip_special_tokens"]) for ids in body["tokens"]]
                    self._answer(200, {"text": texts})
                case "/parse_function_call":
                    self._answer(200, _parsed(body))
                case "/separate_reasoning":
                    self._answer(200, _separated(body))
                case "/abort_request":
                    model.aborted.add(body["rid"])
                    self._answer(200, None)
                case "/generate":
                    model.bodies.append(body)
                    self._generate(body)
                case _:
                    self._answer(404, {"detail": "Not Found"})

        def _answer(self, status: int, data: Any) -> None:
            content = b"" if data is None else json.dumps(data).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _generate(self, body: Json) -> None:
            if not body.get("stream"):
                return self._answer(200, [one for one in model.events(body) if one["meta_info"]["finish_reason"]])
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):
                for event in model.events(body):
                    self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n")
                self._chunk(b"data: [DONE]\n\n")
                self._chunk(b"")

        def _chunk(self, data: bytes) -> None:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()

    return Handler
