"""What our client itself costs: its CPU beside a bare loop of httpx that sends the same requests.

    python -m benchmarks.sglang_client --address URL [--json]

64 requests are under way at a time, each for one sample of 8 tokens below a prompt of 64. The bare loop sends the same
bodies, streams the answers and parses every event; it keeps nothing. It runs with two clients of httpx: one as httpx
makes it, and one that keeps no connections open, which is cheaper with so many at a time, and with which we compare.
CPU is that of this process (user and system); the arms take turns, five rounds each, and the ratio is that of medians.
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

AT_ONCE, ROUNDS, PROMPT_TOKENS = 64, 5, 64
SAMPLING = Sampling(max_tokens=8)
OURS, BARE, USUAL = "our client", "bare loop, connections not kept", "bare loop, httpx as it comes"


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


async def measure(address: str) -> dict[str, float]:
    """Median CPU seconds of each arm for 64 requests."""
    engine = SGLangEngine(address)
    extras = Extras({}, engine.capabilities.seeds, engine.info.ahead)
    closing = httpx.Limits(max_keepalive_connections=0)
    seconds: dict[str, list[float]] = {OURS: [], BARE: [], USUAL: []}
    async with (
        httpx.AsyncClient(base_url=address, timeout=600, limits=closing) as frugal,
        httpx.AsyncClient(base_url=address, timeout=600) as usual,
    ):
        for round_ in range(ROUNDS + 1):
            asked = [prefixes(3 * round_ + arm) for arm in range(3)]
            found = {
                BARE: await timed(bare(frugal, extras, asked[0])),
                USUAL: await timed(bare(usual, extras, asked[1])),
                OURS: await timed(ours(engine, asked[2])),
            }
            for arm, one in found.items() if round_ else ():  # the first warms up
                seconds[arm].append(one)
    await engine.aclose()
    return {arm: median(all_) for arm, all_ in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sglang_client", description=__doc__.partition("\n")[0])
    parser.add_argument("--address", required=True, help="of an SGLang server")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    found = asyncio.run(measure(options.address))
    for arm, seconds in found.items():
        print(f"{arm}: {seconds * 1000 / AT_ONCE:.2f} ms a request")
    ratio = found[OURS] / found[BARE]
    print(f"ours / bare: {ratio:.2f}")
    if options.json:
        fields = {"ours_seconds": found[OURS], "bare_seconds": found[BARE], "usual_seconds": found[USUAL]}
        print(json.dumps({"ratio": round(ratio, 3), **fields}))


if __name__ == "__main__":
    main()
