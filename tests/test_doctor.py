"""What is said about model folders before they are used."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests import models
from tts_agent.cli import main
from tts_agent.pocket import model_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the Llama-shaped model, to be damaged."""
    return Path(shutil.copytree(models.llama(), tmp_path / "model"))


def examined(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    status = main(["doctor", str(folder), "--json"])
    data = json.loads(capsys.readouterr().out)
    assert isinstance(data, dict)
    assert status == (0 if data["supported"] else 1)
    return data


def test_a_folder_that_can_be_served(capsys: pytest.CaptureFixture[str]) -> None:
    data = examined(models.forgetful_qwen(), capsys)
    assert data["supported"] and not data["problem"]
    assert data["architecture"] == "Qwen3ForCausalLM"
    assert data["context"] == models.CONTEXT
    # Keys and values of 3 layers with 2 heads of 16, and the last hidden state of 48, in fp32.
    assert data["bytes_per_1000_tokens"] == 1000 * 4 * (2 * 3 * 2 * 16 + 48)
    assert data["end_tokens"] == ["<|im_end|>", "<|endoftext|>"]
    assert data["tools"]
    findings = data["findings"]
    assert isinstance(findings, list)
    assert [finding["subject"] for finding in findings] == ["history", "tools"]
    assert findings[0]["recomputed"] > 0


def test_the_second_request_computes_what_is_new(capsys: pytest.CaptureFixture[str]) -> None:
    data = examined(models.llama(), capsys)
    first, second = data["first"], data["second"]
    assert isinstance(first, dict) and isinstance(second, dict)
    assert (first["prompt"], first["computed"], first["cached"]) == (256, 256, 0)
    assert second["computed"] + second["cached"] == second["prompt"] == 256 + 8 + 16
    # The last token that was sampled has not been through the model yet.
    assert second["computed"] == 16 + 1


def test_a_diagnosis_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(models.llama())]) == 0
    text = capsys.readouterr().out
    assert "served (LlamaForCausalLM)" in text
    assert "MiB for 1,000 cached tokens" in text
    assert "  tools        no\n" in text and "does not tell the model of the tool" in text
    assert "17 computed, 263 cached" in text


def test_a_model_without_a_chat_template_is_served_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    data = examined(model_folder(), capsys)
    assert data["supported"] and not data["tools"]
    assert "no chat template" in str(data["note"])


def test_a_template_that_writes_the_date_is_served(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "chat_template.jinja").write_text("{{ strftime_now('%Y') }}" + models.INST)
    assert main(["doctor", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "  date         the template may write the date; today= says which\n" in text


def test_the_probe_fits_into_a_short_context(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder / "config.json", max_position_embeddings=40)
    data = examined(folder, capsys)
    assert data["supported"] and data["context"] == 40
    assert isinstance(data["first"], dict) and data["first"]["prompt"] == 8


def missing(folder: Path) -> None:
    shutil.rmtree(folder)


def torn_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def alibi(folder: Path) -> None:
    config = {"architectures": ["BloomForCausalLM"], "model_type": "bloom", "hidden_size": 8, "n_head": 2, "n_layer": 1}
    (folder / "config.json").write_text(json.dumps(config))


def failing_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0].name.first }}")


def foreign_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(models.CHATML_KEEPS)


def foreign_bytes(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe{{ messages }}")


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": {}}')


def short_context(folder: Path) -> None:
    change(folder / "config.json", max_position_embeddings=16)


def small_matrix(folder: Path) -> None:
    """The template writes a token that was added to the tokenizer and not to the model."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|new|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(models.INST.replace("'[INST] '", "'<|new|>[INST] '"))


def change(path: Path, **entries: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_a_file_is_no_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = examined(folder / "config.json", capsys)
    assert data["problem"] == "a model is a folder, and this is none; pass the folder that the file lies in"


def test_no_name_is_no_model(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)  # which is served as '.'
    assert main(["doctor", ""]) == 2
    assert capsys.readouterr().err == "tts-agent: the model's name '' is empty; pass a Hugging Face model folder\n"
    assert main(["doctor", "."]) == 0


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (missing, "does not exist"),
        (torn_weights, "cannot be read"),
        (alibi, "model folder"),
        (failing_template, "chat template"),
        (foreign_template, "which its tokenizer does not have as one token"),
        (foreign_bytes, "is no text in UTF-8"),
        (no_tokenizer, "tokenizer.json' cannot be read"),
        (short_context, "a context of 16 tokens is too short"),
        (small_matrix, "what its chat template writes: token id .* is not in the vocabulary"),
    ],
)
def test_a_folder_that_cannot_be_served_is_refused_with_the_reason(
    damage: Callable[[Path], None], reason: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(folder)
    data = examined(folder, capsys)
    assert re.search(reason, str(data["problem"]))
    assert main(["doctor", str(folder)]) == 1
    assert "cannot be served" in capsys.readouterr().out
