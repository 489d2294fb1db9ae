"""One search, without any workflow around it.

python examples/without_langgraph.py 8 5 3 1 --target 24
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
    outcome = await search(
        engine,
        countdown_task(engine, Puzzle(tuple(options.numbers), options.target)),
        strategy=BestFirst(),
        verifier=countdown_verifier(engine),
        budget=Budget(computed_tokens=options.computed_tokens),
        seed=options.seed,
    )
    print(outcome.answer, end="")
    print(
        f"{'solved' if outcome.solved else 'not solved'} (stop: {outcome.stop}); {len(outcome.tree)} thoughts, "
        f"{outcome.usage.computed} tokens computed, {outcome.usage.prompt_cached} served from cache"
    )
    await engine.aclose()


if __name__ == "__main__":
    asyncio.run(main())
