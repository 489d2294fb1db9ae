"""The puzzles that ship: solvable, unseen in training, and dev apart from held-out."""

import pytest

from training.puzzles import COUNT, SEEN, every_set, unseen
from training.solver import Solver
from training.split import part_of
from tts_agent.errors import ConfigError
from tts_agent.pocket.countdown import Puzzle
from tts_agent.pocket.puzzles import NAMES, SPLITS, Name, Split, load

SIZE = {"countdown3": 3, "countdown4": 4, "countdown5": 5, "countdown6": 6, "game24": 4}


@pytest.fixture(scope="module")
def solver() -> Solver:
    return Solver()


SETS = [(name, split) for split in SPLITS for name in NAMES if split != "shown" or name in ("countdown5", "game24")]


@pytest.mark.parametrize(("name", "split"), SETS)
def test_each_puzzle_is_solvable_and_of_its_split(name: Name, split: Split, solver: Solver) -> None:
    puzzles = load(name, split)
    assert len(set(puzzles)) == len(puzzles)
    for puzzle in puzzles:
        assert len(puzzle.numbers) == SIZE[name]
        assert all(1 <= number <= 13 for number in puzzle.numbers)
        assert puzzle.target == 24 if name == "game24" else 10 <= puzzle.target <= 100
        assert part_of(puzzle.numbers) == ("dev" if split == "dev" else "heldout")
        assert solver.solutions(puzzle.numbers, puzzle.target) > 0


def test_there_are_enough() -> None:
    for name in NAMES:
        if name != "game24":
            assert len(load(name, "heldout")) == COUNT
    assert len(load("game24", "heldout")) == 198
    for name in ("countdown4", "countdown5", "countdown6"):
        assert len(load(name, "dev")) == COUNT
    assert len(load("countdown3", "dev")) == 218
    assert len(load("game24", "dev")) == 52


@pytest.mark.parametrize("split", ["heldout", "dev"])
def test_no_multiset_comes_twice_with_six_numbers_nor_held_out_with_five(split: Split) -> None:
    names: tuple[Name, ...] = ("countdown5", "countdown6") if split == "heldout" else ("countdown6",)
    for name in names:
        multisets = {tuple(sorted(puzzle.numbers)) for puzzle in load(name, split)}
        assert len(multisets) == COUNT


def test_what_is_shown_is_not_what_the_benchmarks_look_at() -> None:
    shown, heldout = load("countdown5", "shown"), load("countdown5", "heldout")
    assert not {tuple(sorted(p.numbers)) for p in shown} & {tuple(sorted(p.numbers)) for p in heldout}
    assert set(load("game24", "shown")) < set(load("game24", "heldout"))  # there are no others


def test_what_was_looked_at_is_left_out() -> None:
    seen = SEEN[5]
    looked_at = [[1, 2, 3, 4, 5 + number % 8, 20 + number // 8] for number in range(seen)]
    again = [[5, 4, 3, 2, 1, 99], [9, 9, 9, 9, 9, 30], [9, 9, 9, 9, 9, 31]]
    assert unseen([*looked_at, *again], 5, [])[0] == [9, 9, 9, 9, 9, 30]
    assert [9, 9, 9, 9, 9, 31] not in unseen([*looked_at, *again], 5, [])
    four = [[1, 2, 3, 4, 20]] * SEEN[4]
    assert unseen([*four, [8, 3, 5, 1, 24], [8, 3, 5, 1, 25]], 4, [[1, 3, 5, 8, 24]])[0] == [8, 3, 5, 1, 25]


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'countdown7'; choose one of countdown3"):
        load("countdown7", "dev")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no split 'train'; choose one of heldout"):
        load("game24", "train")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="split 'shown' has no puzzles 'countdown6'; it has countdown5, game24"):
        load("countdown6", "shown")


@pytest.mark.verify
def test_the_file_is_what_the_seed_draws(solver: Solver) -> None:
    for split, sets in every_set(solver).items():
        for name, puzzles in sets.items():
            assert load(name, split) == [Puzzle(tuple(numbers), target) for *numbers, target in puzzles]  # type: ignore[arg-type]
