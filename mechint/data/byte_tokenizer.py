"""The tokenizer of models that read bytes."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose ids are the UTF-8 bytes of the text: 256 tokens, none of them special.

    Any ids decode; bytes that are no UTF-8 become replacement characters.
    """
    tokenizer = Tokenizer(
        models.BPE(vocab={letter: byte for byte, letter in enumerate(_letters())}, merges=[])
    )
    # Without merges, splitting into words would change nothing but the time it takes.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def _letters() -> list[str]:
    """The printable letter of each byte, as in GPT-2's encoder.py (bytes_to_unicode)."""
    printable = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    others = (chr(256 + rank) for rank in range(256 - len(printable)))
    return [chr(byte) if byte in printable else next(others) for byte in range(256)]
