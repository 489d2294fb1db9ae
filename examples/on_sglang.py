"""A tree search on an SGLang server.

python -m sglang.launch_server --model-path tts_agent/pocket/model --port 30000 --enable-custom-logit-processor
python examples/on_sglang.py 8 5 3 1 --target 24 --engine sglang://127.0.0.1:30000

The engine in this process takes the server's place by default.
"""

import argparse
import asyncio

from tts_agent import BestFirst, Budget, load_engine, search
from tts_agent.pocket import Puzzle, countdown_task, countdown_verifier


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", type=int, default=[8, 5, 3, 1])
    parser.add_argument("--target", type=int, default=24)
    parser.add_argument("--engine", default="embedded://pocket", help="where tokens come from (default: %(default)s)")
    parser.add_argument("--computed-tokens", type=int, default=1500, help="limit of the search (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    engine = load_engine(options.engine)
    info = engine.capabilities.info
    print(f"{engine.name}: {info.get('server', 'in this process')}, a cache of {info['cache_tokens']} tokens")
    task = countdown_task(engine, Puzzle(tuple(options.numbers), options.target))
    outcome = await search(
        engine,
        task,
        strategy=BestFirst(k=4),
        verifier=countdown_verifier(engine),
        budget=Budget(computed_tokens=options.computed_tokens),
        seed=options.seed,
    )
    usage = outcome.usage
    print(outcome.answer, end="")
    print(f"{'solved' if outcome.solved else 'not solved'} (stop: {outcome.stop}), {len(outcome.tree)} thoughts")
    print(
        f"{usage.computed} tokens computed, {usage.prompt_cached} from the cache; without it the same tree takes "
        f"{usage.computed + usage.prompt_cached}"
    )
    await engine.aclose()


if __name__ == "__main__":
    asyncio.run(main())
