"""Tokenizers of a few hundred tokens, made on the spot, as the files that a Hugging Face directory has.

Byte-pair tokenizers are known to llama.cpp's conversion by a hash of what they make of one text, and stop it otherwise; no
tiny tokenizer is among them. `known_to_the_conversion` tells it that they split text as GPT-2 does.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from dqrelo_gguf._pin import conversion_module

SENTENCEPIECE = Path(__file__).parents[2] / "examples" / "tiny" / "base"
N_BPE = 512

# Tokens that conversions of single architectures ask for by name.
BPE_SPECIAL = ("<|endoftext|>", "<|user|>", "<|system|>", "[gMASK]", "<sop>", "<|im_end|>", "<unk>")
WORD_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TEXT = ("the dog sees a cat and makes two? three dogs and five cats", "2+3=5", "a cat sees the five dogs.")


def write_sentencepiece(path: Path) -> None:
    """The tokenizer of examples/tiny: Llama's kind."""
    for file in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(SENTENCEPIECE / file, path)


@functools.cache
def _byte_pairs() -> str:
    """A tokenizer.json of GPT-2's kind."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(TEXT, vocab_size=N_BPE, min_frequency=1, special_tokens=list(BPE_SPECIAL))
    return str(tokenizer.to_str())


def write_byte_pairs(path: Path) -> None:
    """GPT-2's kind."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_byte_pairs()),
        bos_token=BPE_SPECIAL[0],
        eos_token=BPE_SPECIAL[0],
        unk_token=BPE_SPECIAL[0],
    )
    wrapped.save_pretrained(path)


def write_words(path: Path) -> None:
    """BERT's kind: whole words and letters."""
    words = sorted({word.strip(".?") for line in TEXT for word in line.split()})
    letters = sorted({c for line in TEXT for c in line if not c.isspace()})
    vocabulary = dict.fromkeys([*WORD_SPECIAL, *words, *letters, *("##" + c for c in letters)])
    from transformers import BertTokenizerFast

    file = path / "vocab.txt"
    file.write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast(vocab=str(file)).save_pretrained(path)


@contextmanager
def known_to_the_conversion() -> Iterator[None]:
    """Lets llama.cpp's conversion take the byte-pair tokenizers made here."""
    model = conversion_module().TextModel
    with mock.patch.object(model, "get_vocab_base_pre", return_value="gpt-2"):
        yield
