"""The tokenizer of the demo's base model.

Byte-level BPE like Qwen's, so that any text survives a round trip, with merges learned from the demo's own
problems and solutions. Digits stand alone, an operator carries its spaces, and a blank line is one token.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

EOS = "<|endoftext|>"
PAD = "<|pad|>"
_WORDS = Regex(r"\n+|\d| [+=] | ?[^\s\d]+|\s")
_MAX_VOCABULARY = 1024  # never reached: words that digits and operators cut out are few


def make_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Learn a tokenizer from texts; its vocabulary is as large as they ask for.

    Args:
        texts: problems and solutions, at least some hundreds, without special tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_WORDS, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_MAX_VOCABULARY,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False
    )
