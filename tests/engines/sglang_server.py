"""A small HTTP server that answers as a real SGLang server did (`recorded/sglang.json`), with tokens of its own.

A token is a character, the model says letters and newlines drawn from all that came before, and 1 ends its answer.
What was computed is kept, and counted. Faults happen where a test wants them. The truth is the real server: see
tests/sglang.
"""

import copy
import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Json = dict[str, Any]
RECORDED: Json = json.loads((Path(__file__).parent / "recorded" / "sglang.json").read_text(encoding="utf-8"))
END = 1
SPECIAL = {END: "<end>"}


@dataclass
class Faults:
    """How many of the next requests to generate go wrong, and how."""

    refused: int = 0  # answered with 503 before anything is computed
    queue_full: int = 0  # its samples are stopped with 503 before they begin
    torn: int = 0  # the answer breaks off after its first event
    silent: int = 0  # nothing comes
    fewer: int = 0  # the last sample is missing
    garbled: int = 0  # an event that is no JSON


@dataclass
class Model:
    """What is served: what it says, what it has computed."""

    info: Json = field(default_factory=lambda: copy.deepcopy(RECORDED["server_info"]))
    faults: Faults = field(default_factory=Faults)
    known: set[tuple[int, ...]] = field(default_factory=set)
    computed: int = 0
    bodies: list[Json] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    pace: float = 0.0  # seconds between two tokens
    gone: bool = False  # connections are closed without an answer
    behind: list[str] = field(default_factory=list)  # workers: it answers as sglang-router in front of them

    def prompt(self, ids: tuple[int, ...]) -> int:
        """Compute a prompt; how much of it was in the cache."""
        cached = next((n for n in range(len(ids) - 1, 0, -1) if ids[:n] in self.known), 0)
        self.computed += len(ids) - cached
        self.known.update(ids[:n] for n in range(1, len(ids) + 1))
        return cached

    def next(self, ids: tuple[int, ...], params: Json) -> int:
        seed = params.get("custom_params", {}).get("seed") if "custom_params" in params else None
        greedy = params.get("temperature") == 0 and seed is None
        rng = random.Random(f"{ids}|{seed if not greedy else ''}") if seed or greedy else random.Random()
        return END if rng.random() < 0.03 else ord(rng.choice("abcdefgh\n"))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class SGLangServer:
    """Serves `model` at `address` until it is closed."""

    def __init__(self, **info: Any) -> None:
        self.model = Model()
        self.model.info |= info
        self._server = _Server(("127.0.0.1", 0), _handler(self.model))
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self.model.gone = True
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(model: Model) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            if model.behind:
                found = {"workers": [{"url": url} for url in model.behind]} if self.path == "/workers" else None
            else:
                found = {"/server_info": model.info, "/v1/loads": RECORDED["loads"]}.get(self.path)
            self._answer(200 if found is not None else 404, found)

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if model.gone:
                self.close_connection = True
                return
            body = json.loads(raw) if raw else {}
            match self.path.partition("?")[0]:
                case "/tokenize" if "messages" in body:
                    self._answer(400, {"message": "tokenizer.chat_template is not set", "code": 400})
                case "/tokenize":
                    self._answer(200, {"tokens": encode(body["prompt"]), "count": 0, "max_model_len": 2048})
                case "/detokenize":
                    skip = body["skip_special_tokens"]
                    self._answer(200, {"text": [decode(ids, skip) for ids in body["tokens"]]})
                case "/abort_request":
                    model.aborted.append(body["rid"])
                    self._answer(200, None)
                case "/flush_cache":
                    model.known.clear()
                    self._answer(200, None)
                case "/generate":
                    model.bodies.append(body)
                    model.headers.append(dict(self.headers))
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
            faults = model.faults
            if model.behind:
                if not isinstance(body["rid"], str):
                    return self._answer(422, {"error": "rid: invalid type: sequence, expected a string"})
                one = ("input_ids", "rid", "sampling_params", "token_ids_logprob")
                body = body | {name: [body[name]] for name in one if name in body}
            if faults.refused:
                faults.refused -= 1
                return self._answer(503, {"error": {"message": "busy"}})
            if not body.get("stream"):
                return self._answer(
                    200, [event for event in events(model, body) if event["meta_info"]["finish_reason"]]
                )
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):
                self._stream(body)

        def _stream(self, body: Json) -> None:
            faults = model.faults
            if faults.silent:
                faults.silent -= 1
                time.sleep(1.0)
                self.close_connection = True
                return
            if faults.garbled:
                faults.garbled -= 1
                self._chunk(b"data: {nonsense\n\n")
            torn, fewer = bool(faults.torn), bool(faults.fewer)
            faults.torn -= torn
            faults.fewer -= fewer
            for number, event in enumerate(events(model, body)):
                if torn and number == 1:
                    self.close_connection = True
                    return
                if not (fewer and event["index"] == len(body["input_ids"]) - 1):
                    self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n")
            self._chunk(b"data: [DONE]\n\n")
            self._chunk(b"")

        def _chunk(self, data: bytes) -> None:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()

    return Handler


def encode(text: str) -> list[int]:
    head, found, rest = text.partition(SPECIAL[END])
    return [*map(ord, head), *([END, *encode(rest)] if found else [])]


def decode(ids: list[int], skip: bool) -> str:
    return "".join(("" if skip else SPECIAL[i]) if i in SPECIAL else chr(i) if i < 1000 else "" for i in ids)


def events(model: Model, body: Json) -> Iterator[Json]:
    """The events of a request, sample by sample a token at a time, the first and the last told."""
    prompts = [tuple(ids) for ids in body["input_ids"]]
    if any(len(ids) > 2041 for ids in prompts):
        yield RECORDED["too_long"][0]
        return
    full = bool(model.faults.queue_full)
    model.faults.queue_full -= full
    # In one batch nothing is shared, as on the real server.
    before = frozenset(model.known)
    caches = []
    for ids in prompts if not full else ():
        model.known = set(before)
        caches.append(model.prompt(ids))
    for ids in prompts:
        model.known.update(ids[:n] for n in range(1, len(ids) + 1))
    rids, samples = body.get("rid") or [str(i) for i in range(len(prompts))], body["sampling_params"]
    said: list[list[int]] = [[] for _ in prompts]
    left = list(range(len(prompts)))
    if full:
        for i in left:
            yield event(model, body, i, rids[i], said[i], 0, {"type": "abort", "message": "full", "status_code": 503})
        return
    for i in [i for i in left if samples[i].get("max_new_tokens") == 0]:
        left.remove(i)
        yield event(model, body, i, rids[i], [], caches[i], {"type": "length", "length": 0})
    while left:
        time.sleep(model.pace)
        for i in list(left):
            params, ids = samples[i], prompts[i] + tuple(said[i])
            if said[i]:
                model.computed += 1
            said[i].append(biased(params) or model.next(ids, params))
            model.known.add(ids)
            finish = finished(params, said[i])
            if rids[i] in model.aborted:
                finish = {"type": "abort", "message": "Aborted", "status_code": None}
            if finish:
                left.remove(i)
            if finish or len(said[i]) == 1:
                yield event(model, body, i, rids[i], said[i], caches[i], finish)
            ahead = not model.info["disable_overlap_schedule"] and len(said[i]) < params["max_new_tokens"]
            if finish and finish["type"] in ("stop", "abort") and ahead:
                model.computed += 1


def biased(params: Json) -> int | None:
    return next((int(token) for token in params.get("logit_bias", {})), None)


def finished(params: Json, said: list[int]) -> Json | None:
    if stop := next((text for text in params.get("stop", ()) if text in decode(said[-8:], False)), None):
        return {"type": "stop", "matched": stop}
    if not params.get("ignore_eos") and said[-1] in (END, *params.get("stop_token_ids", ())):
        return {"type": "stop", "matched": said[-1]}
    return {"type": "length", "length": len(said)} if len(said) >= params["max_new_tokens"] else None


def event(model: Model, body: Json, place: int, rid: str, said: list[int], cached: int, finish: Json | None) -> Json:
    """A recorded event with other tokens in it."""
    made = copy.deepcopy(RECORDED["sample"][0])
    meta = made["meta_info"]
    made |= {"index": place, "output_ids": list(said), "text": decode(said, False)}
    meta |= {"id": rid, "finish_reason": finish, "prompt_tokens": len(body["input_ids"][place])}
    meta |= {"cached_tokens": cached, "completion_tokens": len(said)}
    if body.get("return_logprob"):
        meta["output_token_logprobs"] = [[-1.0, token, None] for token in said]
        if asked := body.get("token_ids_logprob"):
            steps = said or [0]
            meta["output_token_ids_logprobs"] = [[[-33.0, token, None] for token in asked[place]] for _ in steps]
            if not said:
                meta["output_token_ids_logprobs"] = [[[-1.0 - token / 1000, token, None] for token in asked[place]]]
    return made
