"""The planner's 216 tokens, and the Hugging Face tokenizer that reads and writes them."""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel

from tts_agent.pocket.countdown import LARGEST, OPERATORS

SPECIAL = ("<pad>", "<eos>", "<unk>")
WORDS = ("\n", "?", "sure", "impossible", "nums:", "target:", "left:", "=", *OPERATORS)
TOKENS = (*SPECIAL, *WORDS, *(str(number) for number in range(LARGEST + 1)))
ID = {token: index for index, token in enumerate(TOKENS)}

PAD, EOS = ID["<pad>"], ID["<eos>"]
NEWLINE, QUESTION, SURE, IMPOSSIBLE = ID["\n"], ID["?"], ID["sure"], ID["impossible"]
NUMS, TARGET, LEFT, EQUALS = ID["nums:"], ID["target:"], ID["left:"], ID["="]
NUMBER = ID["0"]
"""Id of the number 0; the number n has the id ``NUMBER + n``."""


def tokenizer() -> Tokenizer:
    """One token a number, sign or word. Spaces carry no meaning and are dropped; newlines are tokens.

    Decoding writes ``8*3=24 left: 24 5 1`` and encoding that text gives the same ids back.
    """
    made = Tokenizer(WordLevel(ID, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[ \t]+"), behavior="removed"),
            pre_tokenizers.Split(Regex(r"\d+|[a-z]+:?|\n|[^\s\da-z]"), behavior="isolated"),
        ]
    )
    # WordPiece without pieces joins by single spaces; the replacements then close up the signs and newlines.
    tight = [decoders.Replace(f" {sign} ", sign) for sign in (*OPERATORS, "=")]
    lines = [decoders.Replace(" \n", "\n"), decoders.Replace("\n ", "\n")]
    made.decoder = decoders.Sequence([decoders.WordPiece(prefix="##", cleanup=False), decoders.Fuse(), *tight, *lines])
    made.add_special_tokens(list(SPECIAL))
    return made


def save_tokenizer(folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` into `folder`."""
    tokenizer().save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 256,
        "clean_up_tokenization_spaces": False,
        "pad_token": "<pad>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "bos_token": None,
        "add_bos_token": False,
        "add_eos_token": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
