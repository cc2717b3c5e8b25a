"""A Hugging Face hub id becomes a local directory."""

import logging
import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mechint.checkpoints.quiet import quiet
from mechint.errors import UserError, one_line

_LOG = logging.getLogger(__name__)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "*.model")
_CONFIG_FILES = ("config.json", "*.index.json", *_TOKENIZER_FILES)


def looks_like_hub_id(text: str) -> bool:
    """Whether the text could be `name` or `owner/name` on the hub."""
    return _HUB_ID.fullmatch(text) is not None


def download_model(hub_id: str, revision: str | None) -> Path:
    """The local directory with a model's configuration, tokenizer and weights (safetensors if it can).

    Uses the local cache when the hub cannot be reached. Raises `UserError` where that fails.
    """
    directory = _download(hub_id, revision, [*_CONFIG_FILES, "model*.safetensors"], "checkpoint")
    if not any(directory.glob("model*.safetensors")):
        directory = _download(hub_id, revision, [*_CONFIG_FILES, "pytorch_model*.bin"], "checkpoint")
    return directory


def download_tokenizer(hub_id: str) -> Path:
    """The local directory with a tokenizer's files; raises `UserError` as `download_model` does."""
    return _download(hub_id, None, ["config.json", *_TOKENIZER_FILES], "tokenizer")


def _download(hub_id: str, revision: str | None, patterns: list[str], what: str) -> Path:
    _LOG.info("looking for %s %s on the Hugging Face hub", what, hub_id)
    where = f"{what} {hub_id!r}: there is no such file or directory here, and "
    try:
        with quiet():
            # Sub-directories hold copies in other formats.
            return Path(
                snapshot_download(hub_id, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"])
            )
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{where}the Hugging Face hub cannot be reached (offline?) and its cache does not hold it; "
            "check the path, or download the model first and give its directory"
        ) from error
    except GatedRepoError as error:
        raise UserError(
            f"{where}access on the Hugging Face hub is gated; accept its terms and run `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(
            f"{where}on the Hugging Face hub it has no revision {revision!r}; check revision="
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{where}the Hugging Face hub has no model of that name; check it (private? `hf auth login`)"
        ) from error
    except Exception as error:
        raise UserError(f"{where}the download failed ({one_line(error, 120)}); try again") from error
