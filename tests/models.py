"""Small models of real shapes, made on the spot: random weights, tokenizers trained here, templates of our own.

`python -m tests.models FOLDER` writes them to `FOLDER/qwen` and `FOLDER/llama`.

* `qwen`: the Qwen3 shape (grouped queries, normalised queries and keys, tied head, padded vocabulary), byte-level BPE,
  ChatML with tools and `<think>`.
* `llama`: the Llama shape with a head of its own; BPE over words that begin with a space, bytes for what it does not
  know, and a `[INST]` template without tools.
"""

import atexit
import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    logging,
)

logging.disable_progress_bar()

Folder = Callable[[], Path]
"""Makes a model's folder; the same one each time."""

TEXT = """\
The planner thinks before it acts, and every branch shares what was computed for its parent.
What is the capital of France? The capital of France is Paris; the answer is 42, not 41.5!
def search(tree, budget): return max(tree.leaves, key=lambda leaf: leaf.score) if budget > 0 else None
{"name": "look_up", "arguments": {"city": "Zürich", "days": 3, "units": ["°C", "mm"], "exact": true}}
Größere Änderungen prüfen wir später; ça va être déjà très drôle, n'est-ce pas? ¿Qué tal, señor?
Быстрая лиса прыгает через ленивую собаку, и проверка проходит успешно.
Η γρήγορη αλεπού πηδά πάνω από το τεμπέλικο σκυλί και φεύγει.
敏捷的棕色狐狸跳过了懒狗,然后搜索树继续生长。答案是四十二。
素早い茶色の狐はのろまな犬を飛び越える。答えは四十二です。
빠른 갈색 여우가 게으른 개를 뛰어넘는다. 정답은 사십이입니다.
الثعلب البني السريع يقفز فوق الكلب الكسول، والجواب اثنان وأربعون.
השועל החום המהיר קופץ מעל הכלב העצלן והתשובה היא ארבעים ושתיים.
तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है और उत्तर बयालीस है।
สุนัขจิ้งจอกสีน้ำตาลกระโดดข้ามสุนัขขี้เกียจ
🦊🐶 jumps! 👍🏽 👩‍👩‍👧‍👦 🇫🇷 🏳️‍🌈 e\u0301 ≠ é, ½ × 8 = 4 ✓, naïve café — “quotes” … ∀x∈ℝ: x² ≥ 0
yes no Yes No true false good bad correct incorrect safe unsafe A B C D 0 1 2 3 4 5 6 7 8 9
"""
"""What the tokenizers are trained on, again and again."""

CONTEXT = 4096

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How byte-level tokenizers of today cut text before merging."""

CHATML = """\
{%- macro said(message) -%}
{%- if message.content is string -%}{{- message.content -}}{%- endif -%}
{%- endmacro -%}
{%- if tools -%}
{{- '<|im_start|>system\n' -}}
{%- if messages[0].role == 'system' -%}{{- said(messages[0]) + '\n\n' -}}{%- endif -%}
{{- 'You may call these functions:\n<tools>' -}}
{%- for tool in tools -%}{{- '\n' -}}{{- tool | tojson -}}{%- endfor -%}
{{- '\n</tools>\nTo call one, say:\n<tool_call>\n{"name": <name>, "arguments": <object>}\n</tool_call><|im_end|>\n' -}}
{%- elif messages[0].role == 'system' -%}
{{- '<|im_start|>system\n' + said(messages[0]) + '<|im_end|>\n' -}}
{%- endif -%}
{%- set asked = namespace(last=0) -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{%- set asked.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) -%}
{{- '<|im_start|>' + message.role + '\n' + said(message) + '<|im_end|>\n' -}}
{%- elif message.role == 'assistant' -%}
{{- '<|im_start|>assistant\n' -}}
{%- if message.reasoning_content and RECALL -%}
{{- '<think>\n' + message.reasoning_content.strip('\n') + '\n</think>\n\n' -}}
{%- endif -%}
{{- said(message) -}}
{%- for call in message.tool_calls or [] -%}
{%- set called = call.function if call.function else call -%}
{%- if said(message) or not loop.first -%}{{- '\n' -}}{%- endif -%}
{{- '<tool_call>\n{"name": "' + called.name + '", "arguments": ' -}}
{{- called.arguments if called.arguments is string else called.arguments | tojson -}}
{{- '}\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\n' -}}
{%- elif message.role == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
{{- '\n<tool_response>\n' + said(message) + '\n</tool_response>' -}}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{- '<|im_end|>\n' -}}{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\n' -}}
{%- if enable_thinking is defined and not enable_thinking -%}{{- '<think>\n\n</think>\n\n' -}}{%- endif -%}
{%- endif -%}
"""

CHATML_KEEPS = CHATML.replace("RECALL", "true")
"""ChatML with tools and reasoning that says of every turn what was said then."""

CHATML_FORGETS = CHATML.replace("RECALL", "loop.index0 > asked.last")
"""The same, but reasoning is dropped from what was said before the last user message: history is rewritten."""

INST = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role == 'system' and not loop.first or message.role not in ('system', 'user', 'assistant') -%}
{{- raise_exception('this template knows no ' + message.role + ' message here') -}}
{%- elif message.role == 'assistant' -%}
{{- message.content + eos_token -}}
{%- else -%}
{{- '[INST] ' + message.content + ' [/INST]' -}}
{%- endif -%}
{%- endfor -%}
"""


@cache
def qwen() -> Path:
    """Folder of the Qwen-shaped model, made once in this process and removed with it."""
    return write_qwen(_session() / "qwen")


@cache
def forgetful_qwen() -> Path:
    """The same model with the template that rewrites history."""
    return write_qwen(_session() / "forgetful", template=CHATML_FORGETS)


@cache
def llama() -> Path:
    """Folder of the Llama-shaped model, made once in this process and removed with it."""
    return write_llama(_session() / "llama")


@cache
def _session() -> Path:
    folder = TemporaryDirectory(prefix="tts-agent-models-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def write_qwen(folder: Path, *, template: str = CHATML_KEEPS) -> Path:
    """Write the Qwen-shaped model to `folder` and return it."""
    tokenizer = byte_level()
    ends = [tokenizer.token_to_id(text) for text in ("<|im_end|>", "<|endoftext|>")]
    config = Qwen3Config(
        # The matrix is larger than the tokenizer, as in models that pad it.
        vocab_size=-(-tokenizer.get_vocab_size() // 64) * 64,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=CONTEXT,
        initializer_range=0.15,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        bos_token_id=ends[1],
        eos_token_id=ends,
        pad_token_id=ends[1],
    )
    _save(folder, Qwen3ForCausalLM, config)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=template
    )
    fast.save_pretrained(folder)
    return folder


def write_llama(folder: Path) -> Path:
    """Write the Llama-shaped model to `folder` and return it."""
    tokenizer = word_level()
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.15,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        bos_token_id=1,
        eos_token_id=2,
    )
    _save(folder, LlamaForCausalLM, config)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=INST
    )
    fast.save_pretrained(folder)
    return folder


def byte_level() -> Tokenizer:
    """Byte-level BPE: any text, any byte, no unknown token; ChatML's tokens and those of tools and thinking."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXT.splitlines(keepends=True) * 4, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    # As in Qwen3, these are single tokens but not special: decoding shows them.
    texts = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in texts])
    return tokenizer


def word_level() -> Tokenizer:
    """BPE in the manner of SentencePiece: a space belongs to the word after it, unknown characters become bytes."""
    trained = Tokenizer(BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=500, limit_alphabet=90, show_progress=False)
    trained.train_from_iterator(TEXT.splitlines() * 4, trainer)
    learned = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    tokenizer = Tokenizer(
        BPE(
            {piece: i for i, piece in enumerate(pieces)},
            [tuple(merge) for merge in learned["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def _save(folder: Path, kind: type[PreTrainedModel], config: object) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(20)
        kind(config).eval().save_pretrained(folder)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    print(write_qwen(target / "qwen"), write_llama(target / "llama"), sep="\n")
