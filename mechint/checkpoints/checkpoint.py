"""What every kind of checkpoint becomes."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mechint.masking.examining import AttentionFacts

# Names that say nothing about the model: the directory's name goes in front of them.
_GENERIC_NAME = re.compile(
    r"(ckpt|checkpoint|model|weights|final|best|latest|last|step|iter|epoch)?([-_]?\d+)?", re.IGNORECASE
)


@dataclass(frozen=True)
class LoadOptions:
    """How to load: `dtype` "auto" is the checkpoint's own, `attention` None is transformers' choice."""

    dtype: torch.dtype | str = torch.float32
    attention: str | None = None
    own_tokenizer: bool = True
    num_heads: int | None = None
    kv_tying: bool | None = None
    ignore: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoadedModel:
    """What the reader of one format hands to the loader: a model still on the CPU and not yet frozen."""

    model: PreTrainedModel
    weight_files: tuple[Path, ...]
    tokenizer: PreTrainedTokenizerBase | None = None
    notes: tuple[str, ...] = ()
    stated_loss: float | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A trained model, frozen: in eval mode, without gradients, on its device, with `use_cache` off.

    `source` is what the user typed (an absolute path for files and directories); `sha256` is that of the
    weight file, or of the shards one after the other in the order of their names; `name` is short and made of
    `A-Za-z0-9._-` only; `notes` are facts that a reader of the results must know; `attention` says what masks cannot
    change, and which layers have K = V. `stated_loss` is the validation loss that the file itself names, in nats per
    token.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    source: str
    sha256: str
    format: str
    name: str
    attention: AttentionFacts
    notes: tuple[str, ...] = ()
    stated_loss: float | None = None

    @property
    def architecture(self) -> str:
        """The architecture's name in transformers, e.g. `gpt2` or `llama`."""
        return self.model.config.model_type

    @property
    def num_parameters(self) -> int:
        """Number of weights; tied ones count once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def vocab_size(self) -> int:
        """V, the rows of the token embedding: token ids must be smaller."""
        embedding = self.model.get_input_embeddings().weight
        assert isinstance(embedding, torch.Tensor)
        return embedding.shape[0]

    @property
    def max_positions(self) -> int | None:
        """The longest sequence the model was made for, in tokens; None where it names no limit."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)


def short_name(source: str) -> str:
    """A name for directories and titles, e.g. `gpt2` for `openai/gpt2`, `run3-ckpt` for `run3/ckpt.pt`."""
    path = Path(source.removeprefix("bundled:"))
    is_file = path.suffix.lower() in {".pt", ".pth", ".safetensors", ".gguf", ".ckpt"}
    name = path.stem if is_file else path.name
    if _GENERIC_NAME.fullmatch(name):
        name = f"{path.parent.name}-{name}"
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")
    return name[:80] or "checkpoint"


def sha256_of(files: tuple[Path, ...]) -> str:
    """Hex SHA-256 over the files' bytes, one after the other in the order of their names, streamed."""
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda path: path.name):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
