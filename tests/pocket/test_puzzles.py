"""The puzzles that ship: solvable, unseen in training, and dev apart from held-out."""

import pytest

from training.puzzles import every_set
from training.solver import Solver
from training.split import part_of
from tts_agent.errors import ConfigError
from tts_agent.pocket.countdown import Puzzle
from tts_agent.pocket.puzzles import NAMES, SPLITS, Name, Split, load

SIZE = {"countdown3": 3, "countdown4": 4, "countdown5": 5, "game24": 4}


@pytest.fixture(scope="module")
def solver() -> Solver:
    return Solver()


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", NAMES)
def test_each_puzzle_is_solvable_and_of_its_split(name: Name, split: Split, solver: Solver) -> None:
    puzzles = load(name, split)
    assert len(set(puzzles)) == len(puzzles)
    for puzzle in puzzles:
        assert len(puzzle.numbers) == SIZE[name]
        assert all(1 <= number <= 13 for number in puzzle.numbers)
        assert puzzle.target == 24 if name == "game24" else 10 <= puzzle.target <= 100
        assert part_of(puzzle.numbers) == split
        assert solver.solutions(puzzle.numbers, puzzle.target) > 0


def test_there_are_enough() -> None:
    assert len(load("countdown5", "heldout")) >= 600
    assert len(load("game24", "heldout")) >= 60
    for name in ("countdown3", "countdown4"):
        assert len(load(name, "heldout")) >= 400
    for name in ("countdown3", "countdown4", "countdown5"):
        assert len(load(name, "dev")) == 200


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'countdown7'; choose one of countdown3"):
        load("countdown7", "dev")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no split 'train'; choose one of heldout"):
        load("game24", "train")  # type: ignore[arg-type]


@pytest.mark.verify
def test_the_file_is_what_the_seed_draws(solver: Solver) -> None:
    for split, sets in every_set(solver).items():
        for name, puzzles in sets.items():
            assert load(name, split) == [Puzzle(tuple(numbers), target) for *numbers, target in puzzles]  # type: ignore[arg-type]
