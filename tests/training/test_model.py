"""The shipped folder: small, complete, and the same in Hugging Face's classes as in the training code."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from training import record
from training.machine import this_machine
from training.measure import EXACT, Walk, area, measure, verdicts
from training.network import Planner, Shape, load_folder, rotation, save_folder
from training.packing import prompt_ids
from training.sampling import sample
from training.solver import Solver
from training.split import forbidden
from training.train import RECIPES, Recipe, train
from training.vocabulary import IMPOSSIBLE, NEWLINE, QUESTION, SURE, TOKENS
from tts_agent.pocket import MODELS, model_folder
from tts_agent.pocket.countdown import Puzzle, prompt_text
from tts_agent.pocket.puzzles import load

TRACE = "nums: 8 5 3 1 target: 24\n8*3=24 left: 24 5 1\n24/1=24 left: 24 5\n24+5=29 left: 29\n"
FOLDER = model_folder()


@pytest.fixture(scope="module")
def planner() -> Planner:
    return load_folder(FOLDER)


def causal(length: int) -> torch.Tensor:
    return torch.zeros(length, length).masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_is_complete_and_has_a_card(name: str) -> None:
    folder = model_folder(name)
    assert "countdown5" in (folder / "CARD.md").read_text(encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"] is True
    assert config["bos_token_id"] is None
    assert config["vocab_size"] == len(TOKENS)
    recipe = RECIPES["large" if name == "pocket" else "small"]
    assert load_folder(folder).shape == recipe.shape


def test_both_folders_together_are_small() -> None:
    assert sum(file.stat().st_size for name in MODELS for file in model_folder(name).iterdir()) < 8_000_000


def test_the_tokenizer_gives_ids_back_exactly() -> None:
    plain, auto = Tokenizer.from_file(str(FOLDER / "tokenizer.json")), AutoTokenizer.from_pretrained(FOLDER)
    ids = plain.encode(TRACE).ids
    assert auto(TRACE)["input_ids"] == ids
    assert plain.decode(ids) == auto.decode(ids) == TRACE
    everything = list(range(len(TOKENS)))
    assert plain.encode(plain.decode(everything, skip_special_tokens=False)).ids == everything
    assert plain.encode("8 * 3 = 24  left: 24 5 1 \n").ids == plain.encode("8*3=24 left: 24 5 1\n").ids
    assert plain.encode("?sure").ids == [QUESTION, SURE]
    assert auto.eos_token == "<eos>"
    assert auto.bos_token is None


def test_hugging_face_computes_the_same_logits(planner: Planner) -> None:
    ids = torch.tensor([Tokenizer.from_file(str(FOLDER / "tokenizer.json")).encode(TRACE).ids])
    length = ids.shape[1]
    with torch.no_grad():
        reference = AutoModelForCausalLM.from_pretrained(FOLDER)(ids).logits
        ours = planner(ids, rotation(planner.shape, torch.arange(length)), causal(length))
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-4)


def test_saved_weights_come_back(tmp_path: Path) -> None:
    torch.manual_seed(1)
    made = Planner(Shape(width=32, layers=1, heads=2, inner=48))
    save_folder(made, tmp_path)
    again = load_folder(tmp_path)
    for name, weight in made.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weight, rtol=0, atol=0)


def test_cached_sampling_is_what_hugging_face_generates(planner: Planner) -> None:
    puzzles = load("countdown4", "dev")[:4]
    written = sample(planner, puzzles, temperature=0, generator=torch.Generator())
    reference = AutoModelForCausalLM.from_pretrained(FOLDER)
    for puzzle, ids in zip(puzzles, written, strict=True):
        prompt = torch.tensor([prompt_ids(puzzle)])
        attention = torch.ones_like(prompt)
        made = reference.generate(prompt, attention_mask=attention, max_new_tokens=len(ids), do_sample=False)
        assert made[0, prompt.shape[1] :].tolist() == ids


@pytest.mark.parametrize("name", MODELS)
def test_verdicts_tell_a_won_ending_from_a_lost_one_and_from_false_claims(name: str) -> None:
    codec = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    way = "nums: 12 6 4 2 target: 24\n12+6=18 left: 18 4 2\n18+4=22 left: 22 2\n"
    false = ("22-2=24 left: 24\n", "12*2=24 left: 24\n", "22+4=24 left: 24\n", "24+2=24 left: 24\n")
    endings = ("22+2=24 left: 24\n", "22-2=20 left: 20\n", *false)
    judge = load_folder(model_folder(name))
    answers = [verdicts(judge, [codec.encode(way + ending).ids])[0] for ending in endings]
    won, *others = (sure - impossible for sure, impossible in answers)
    assert won > 0 > max(others)


def test_the_two_answers_take_nearly_all_the_probability(planner: Planner) -> None:
    prompts = [prompt_ids(puzzle) for puzzle in load("countdown5", "dev")[:50]]
    for sure, impossible in verdicts(planner, prompts):
        assert torch.tensor([sure, impossible]).exp().sum() > 0.99


def test_the_planner_plans(planner: Planner) -> None:
    report = measure(planner, load("game24", "dev"), Solver(), samples=8)
    assert report["pass@8"] > 0.3
    assert report["legal steps"] > 0.9
    assert report["verdict area, legal"] > 0.9


def test_walks_stop_at_the_first_fault() -> None:
    codec = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    puzzle = Puzzle((8, 5, 3, 1), 24)
    good = codec.encode(TRACE.removeprefix(prompt_text(puzzle))).ids
    assert [step.op for step in Walk(puzzle, good).steps] == ["*", "/", "+"]
    assert not Walk(puzzle, good).solved
    bad = Walk(puzzle, codec.encode("8*3=25 left: 25 5 1\n").ids)
    assert bad.faulty and bad.illegal is not None and not bad.steps
    assert Walk(puzzle, [SURE, IMPOSSIBLE, NEWLINE]).faulty


def test_area_counts_ordered_pairs() -> None:
    assert area([(True, 2.0), (False, 1.0), (True, 0.0), (False, -1.0)]) == 0.75


TINY = Recipe(shape=Shape(width=32, layers=1, heads=2, inner=48), steps=8, batch=4, warmup=1, own_from=3, own_share=0.5)


def run(recipe: Recipe, out: Path, **settings: Any) -> Planner:
    usual: dict[str, Any] = {"report_every": 2, "save_every": 5, "measure_every": 100, "machine": EXACT}
    return train(recipe, out, solver=Solver(), compiled=False, **(usual | settings))


def assert_equal(first: Planner, second: Planner) -> None:
    for name, weight in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], weight, rtol=0, atol=0)


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    file = io.StringIO()
    whole = run(TINY, tmp_path / "whole", record=file)
    resumed = run(TINY, tmp_path / "resumed", resume=tmp_path / "whole" / "checkpoint.pt")
    assert_equal(whole, resumed)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "whole").num_parameters() < 30_000
    file.seek(0)
    seen = list(record.states(file))
    assert len(seen) > 8 * 4 * 3
    assert not any(map(forbidden, seen))


def test_a_longer_run_is_a_shorter_one_until_that_ones_rate_falls(tmp_path: Path) -> None:
    short = run(TINY, tmp_path / "short")
    run(replace(TINY, steps=11), tmp_path / "long", save_every=6)
    branch = run(TINY, tmp_path / "branch", resume=tmp_path / "long" / "checkpoint.pt")
    assert_equal(short, branch)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    run(TINY, tmp_path)
    with pytest.raises(ValueError, match="is of the recipe .*; resume with its settings"):
        run(replace(TINY, rate=1e-3), tmp_path, resume=tmp_path / "checkpoint.pt")


def test_the_rate_rises_stays_and_falls_to_nothing() -> None:
    recipe = Recipe(steps=1000, warmup=100, cooldown=0.25)
    assert recipe.rate_at(0) == pytest.approx(recipe.rate / 100)
    assert recipe.rate_at(100) == recipe.rate_at(749) == recipe.rate
    assert recipe.rate_at(999) == pytest.approx(recipe.rate / 250)


@pytest.mark.skipif(not this_machine().bf16, reason="this processor has no bf16 products")
def test_bf16_products_give_nearly_the_same_loss_and_full_weights(tmp_path: Path) -> None:
    exact = run(TINY, tmp_path / "exact")
    mixed = run(TINY, tmp_path / "mixed", machine=this_machine())
    assert {weight.dtype for weight in mixed.parameters()} == {torch.float32}
    torch.testing.assert_close(mixed.embedding, exact.embedding, rtol=0, atol=0.05)
