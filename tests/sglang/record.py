"""Writes down what a real server answers, for the tests that run without one.

    python -m tests.sglang.record http://127.0.0.1:30000 tests/engines/recorded/sglang.json

The recorded file was made by SGLang 0.5.23 serving the pocket planner with the settings of `server.py`.
"""

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from tts_agent.engines.base import Sampling
from tts_agent.engines.sglang.body import Extras, Json, Part, sampling_body, scoring_body

SETTINGS = (
    "version max_req_input_len context_length max_total_num_tokens chunked_prefill_size page_size "
    "disable_overlap_schedule disable_radix_cache enable_cache_report enable_metrics enable_custom_logit_processor "
    "enable_return_hidden_states return_hidden_states_mode enable_deterministic_inference enable_priority_scheduling "
    "enable_strict_thinking tool_call_parser reasoning_parser grammar_backend"
)

PROMPT = (7, *range(16, 27))


def main(address: str, target: Path) -> None:
    client = httpx.Client(base_url=address, timeout=60)

    def events(body: Json) -> list[Json]:
        with client.stream("POST", "/generate", json=body) as answer:
            return [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]

    def aborted() -> list[Json]:
        body = sampling_body([Part(PROMPT, 1)], Sampling(max_tokens=1900), Extras({}), logprobs=False)

        def abort() -> None:
            time.sleep(0.5)
            httpx.post(f"{address}/abort_request", json={"rid": body["rid"][0]})

        thread = threading.Thread(target=abort)
        thread.start()
        found = events(body)[-1:]
        thread.join()
        return found

    said = client.get("/server_info").json()
    state = said["internal_states"][0]
    running = "effective_max_running_requests_per_dp"
    info: Json = {key: said[key] for key in SETTINGS.split()}
    info |= {"model_path": "served/elsewhere", "tokenizer_path": "served/elsewhere"}
    info["internal_states"] = [{running: state[running], "memory_usage": state["memory_usage"]}]
    plain, seeded = Extras({}), Extras({}, seeded=True, ahead=True)
    recorded: dict[str, Any] = {
        "server_info": info,
        "loads": client.get("/v1/loads").json(),
        "sample": events(
            sampling_body([Part(PROMPT, 1), Part(PROMPT, 2)], Sampling(max_tokens=3), plain, logprobs=True)
        ),
        "seeded": events(sampling_body([Part(PROMPT, 1)], Sampling(max_tokens=3), seeded, logprobs=True)),
        "stop": events(
            sampling_body(
                [Part(PROMPT, 1)],
                Sampling(max_tokens=30, temperature=0, stop_ids=tuple(range(113))),
                plain,
                logprobs=False,
            )
        ),
        "score": events(scoring_body([PROMPT], plain, tokens=[[5, 6]])),
        "warm": events(scoring_body([PROMPT], plain)),
        "too_long": events(scoring_body([PROMPT * 300], plain)),
        "abort": aborted(),
        "tokenize": client.post("/tokenize", json={"prompt": "8 5 3", "add_special_tokens": False}).json(),
        "detokenize": client.post("/detokenize", json={"tokens": [[18, 16]], "skip_special_tokens": False}).json(),
    }
    target.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
