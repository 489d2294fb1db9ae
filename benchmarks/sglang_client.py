"""What our client itself costs: its CPU beside a bare loop of httpx that sends the same requests.

    python -m benchmarks.sglang_client --address URL [--json]

64 requests are under way at a time, each for one sample of 8 tokens below a prompt of 64. The bare loop sends the same
bodies, streams the answers and parses every event; it keeps nothing. CPU is that of this process (user and system),
the arms take turns, and the ratio is that of the medians.
"""

import argparse
import asyncio
import json
import random
import time
from collections.abc import Awaitable
from statistics import median

import httpx
import orjson

from tts_agent.engines import Sampling
from tts_agent.engines.sglang import SGLangEngine
from tts_agent.engines.sglang.body import Extras, Part, sampling_body
from tts_agent.prefix import Prefix

AT_ONCE, ROUNDS, PROMPT_TOKENS = 64, 3, 64
SAMPLING = Sampling(max_tokens=8)


def prefixes(round_: int) -> list[Prefix]:
    rng = random.Random(round_)
    return [Prefix(tuple(rng.randrange(100) for _ in range(PROMPT_TOKENS))) for _ in range(AT_ONCE)]


async def ours(engine: SGLangEngine, asked: list[Prefix]) -> int:
    async def one(prefix: Prefix) -> int:
        return sum([len(completion.ids) async for completion in engine.sample(prefix, SAMPLING, seeds=[1])])

    return sum(await asyncio.gather(*map(one, asked)))


async def bare(client: httpx.AsyncClient, extras: Extras, asked: list[Prefix]) -> int:
    async def one(prefix: Prefix) -> int:
        body = orjson.dumps(sampling_body([Part(prefix.ids, 1)], SAMPLING, extras, logprobs=True))
        said = 0
        async with client.stream("POST", "/generate", content=body, headers=HEADERS) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    said = len(orjson.loads(line[6:])["output_ids"])
        return said

    return sum(await asyncio.gather(*map(one, asked)))


HEADERS = {"Content-Type": "application/json"}


async def timed(work: Awaitable[int]) -> float:
    """CPU seconds of `work`."""
    begun = time.process_time()
    said = await work
    seconds = time.process_time() - begun
    assert said == AT_ONCE * SAMPLING.max_tokens, said
    return seconds


async def measure(address: str) -> tuple[float, float]:
    """Median CPU seconds of our client and of the bare loop, for 64 requests."""
    engine = SGLangEngine(address)
    extras = Extras({}, engine.capabilities.seeds, engine.info.ahead)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=128, keepalive_expiry=3.0)
    client_cpu, bare_cpu = [], []
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as client:
        for round_ in range(ROUNDS + 1):
            asked = prefixes(round_)
            theirs = await timed(bare(client, extras, asked))
            mine = await timed(ours(engine, asked))
            if round_:  # the first makes connections
                client_cpu.append(mine)
                bare_cpu.append(theirs)
    await engine.aclose()
    return median(client_cpu), median(bare_cpu)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sglang_client", description=__doc__.partition("\n")[0])
    parser.add_argument("--address", required=True, help="of an SGLang server")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    mine, theirs = asyncio.run(measure(options.address))
    each = [seconds * 1000 / AT_ONCE for seconds in (mine, theirs)]
    print(f"our client {each[0]:.2f} ms a request, bare loop {each[1]:.2f} ms: {mine / theirs:.2f}")
    if options.json:
        print(json.dumps({"ratio": round(mine / theirs, 3), "ours_seconds": mine, "bare_seconds": theirs}))


if __name__ == "__main__":
    main()
