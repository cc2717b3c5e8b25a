"""A checkpoint's own tokenizer, or another one in its place."""

from pathlib import Path
from typing import Any

from tokenizers.processors import Sequence, TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mechint.checkpoints.hub import download_tokenizer, looks_like_hub_id
from mechint.checkpoints.quiet import quiet
from mechint.errors import UserError, one_line

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def read_tokenizer(directory: Path) -> PreTrainedTokenizerBase | None:
    """The fast tokenizer of a directory, None if it holds no tokenizer files.

    Raises `UserError` where there are such files and they do not make a working fast tokenizer.
    """
    if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        return None
    file = directory / "tokenizer.json"
    try:
        with quiet():
            if file.is_file() and not (directory / "tokenizer_config.json").is_file():
                # The architecture's default class would add its own special tokens, outside the vocabulary.
                tokenizer: Any = PreTrainedTokenizerFast(tokenizer_file=str(file))
            else:
                options = {"local_files_only": True, "trust_remote_code": False}
                tokenizer = AutoTokenizer.from_pretrained(directory, **options)
    except Exception as error:
        raise UserError(
            f"the tokenizer in {directory} cannot be loaded ({one_line(error, 120)}); "
            "repair it or name another with model.tokenizer=PATH_OR_HUB_ID"
        ) from error
    return checked(tokenizer, str(directory))


def find_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer in a directory, in a file of the `tokenizers` library or on the hub.

    A file counts alone, unless it is a directory's `tokenizer.json`. Raises `UserError` if there is none.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if path.name != "tokenizer.json":
            return _read_file(path)
        path = path.parent
    elif not path.is_dir():
        if not looks_like_hub_id(source):
            raise UserError(f"model.tokenizer={source}: there is no such directory; give one, or a hub id")
        path = download_tokenizer(source)
    tokenizer = read_tokenizer(path)
    if tokenizer is None:
        raise UserError(f"model.tokenizer={source}: {path} holds no tokenizer (tokenizer.json)")
    return tokenizer


def _read_file(file: Path) -> PreTrainedTokenizerBase:
    try:
        with quiet():
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file))
    except Exception as error:
        raise UserError(
            f"model.tokenizer={file} is not a tokenizer of the `tokenizers` library ({one_line(error, 80)}); give its "
            "directory, or a file written by Tokenizer.save"
        ) from error
    return checked(tokenizer, str(file))


def checked(tokenizer: PreTrainedTokenizerBase, where: str) -> PreTrainedTokenizerBase:
    """The tokenizer itself, once it has shown that it is a fast one and knows some text.

    Raises `UserError` otherwise: transformers builds an empty tokenizer from some incomplete sets of files.
    """
    if not tokenizer.is_fast:
        raise UserError(f"the tokenizer in {where} is not a fast one; save it with a tokenizer.json")
    if not tokenizer("a", add_special_tokens=False).input_ids:
        raise UserError(
            f"the tokenizer in {where} is empty (incomplete files?); save it with a tokenizer.json"
        )
    return tokenizer


def add_bos(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a tokenizer put its beginning-of-text token before every text, if it has one and does not do so yet."""
    token, backend = tokenizer.bos_token, getattr(tokenizer, "backend_tokenizer", None)
    if token is None or backend is None or tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]:
        return
    start = TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, tokenizer.bos_token_id)]
    )
    backend.post_processor = (
        start if backend.post_processor is None else Sequence([backend.post_processor, start])
    )
