"""From what the user typed as `checkpoint=` to a frozen model."""

import dataclasses
import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from transformers import PreTrainedModel

from mechint.checkpoints.checkpoint import Checkpoint, LoadedModel, LoadOptions, sha256_of, short_name
from mechint.checkpoints.gguf import load_gguf
from mechint.checkpoints.gguf_split import gguf_parts
from mechint.checkpoints.huggingface import load_directory, load_safetensors
from mechint.checkpoints.location import Location, locate
from mechint.checkpoints.nanogpt import load_nanogpt
from mechint.checkpoints.sharding import shard
from mechint.checkpoints.tokenizer import find_tokenizer
from mechint.checkpoints.weights import weight_files
from mechint.errors import UserError, one_line
from mechint.masking import MaskedModel
from mechint.masking.examining import AttentionFacts, examine

# Files that decide, with the weights beside them, what a model computes and which tokens it reads.
_DESCRIPTIONS = ("config.json", "tokenizer.json", "tokenizer_config.json")
_READERS = {
    "bundled": load_directory,
    "huggingface": load_directory,
    "safetensors": load_safetensors,
    "gguf": load_gguf,
    "nanogpt": load_nanogpt,
}
_ATTENTION = ("auto", "sdpa", "eager")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class CheckpointLoader:
    """Loads every kind of checkpoint into transformers' own model classes.

    `attention` is the implementation ("auto": transformers' choice), `tokenizer` a directory, file or hub id to use
    instead of the checkpoint's own, `revision` a branch, tag or commit of a hub id. For nanoGPT-style checkpoints that
    do not say so themselves: `num_heads` is the number of attention heads, `kv_tying` whether c_attn has one projection
    for keys and values. `ignore` names settings and tensors that are to count as harmless. `shard` splits the layers
    over the processes of torchrun, for models that one device cannot hold.
    """

    attention: str = "auto"
    tokenizer: str | None = None
    revision: str | None = None
    num_heads: int | None = None
    kv_tying: bool | None = None
    ignore: list[str] = field(default_factory=list)
    shard: bool = False

    def load(self, source: str, device: torch.device, dtype: str) -> Checkpoint:
        """The frozen model, in eval mode on `device`, with its tokenizer.

        `dtype` is float32, bfloat16, float16 or "auto": float32 on a CPU, the checkpoint's own elsewhere.
        Raises `UserError` for everything that cannot be loaded or analysed.
        """
        options = self._options(device, dtype)
        check_device(device)
        tokenizer = None if self.tokenizer is None else find_tokenizer(self.tokenizer)
        location = locate(source, self.revision)
        loaded = _READERS[location.format](location.path, options)
        if tokenizer is not None:
            loaded = dataclasses.replace(loaded, tokenizer=tokenizer)
        loaded = dataclasses.replace(loaded, notes=(*loaded.notes, *self._settings_without_effect(location)))
        return as_checkpoint(
            loaded, location, device, _sha256(loaded.weight_files), location.source, self.shard
        )

    def fingerprint(self, source: str) -> str:
        """Hex SHA-256 of what a checkpoint's numbers depend on: weights, and configuration and tokenizer beside them.

        Reads the files, once as long as they stay the same, but does not load the model; a hub id is downloaded.
        Raises `UserError` where there is no such checkpoint.
        """
        location = locate(source, self.revision)
        in_directory = location.path.is_dir()
        weights = weight_files(location.path) if in_directory else gguf_parts(location.path)
        directory = location.path if in_directory else location.path.parent
        reads_beside = in_directory or location.format == "safetensors"
        beside = [directory / name for name in _DESCRIPTIONS if reads_beside]
        digests = [_sha256(weights), *(_sha256((file,)) for file in beside if file.is_file())]
        return hashlib.sha256("\n".join(digests).encode()).hexdigest() if len(digests) > 1 else digests[0]

    def _options(self, device: torch.device, dtype: str) -> LoadOptions:
        precision = dtype_of(dtype, "auto" if device.type != "cpu" else torch.float32)
        if self.attention not in _ATTENTION:
            raise UserError(f"model.attention={self.attention} is not known; use {', '.join(_ATTENTION)}")
        attention = None if self.attention == "auto" else self.attention
        return LoadOptions(
            precision, attention, self.tokenizer is None, self.num_heads, self.kv_tying, tuple(self.ignore)
        )

    def _settings_without_effect(self, location: Location) -> list[str]:
        notes = []
        if self.revision is not None and not location.on_hub:
            notes.append("model.revision has no effect: the checkpoint is not on the hub")
        if location.format != "nanogpt":
            if self.num_heads is not None:
                notes.append("model.num_heads has no effect: the checkpoint's configuration names its heads")
            if self.kv_tying is not None:
                notes.append("model.kv_tying has no effect: the checkpoint's configuration says what it is")
        return notes


def as_checkpoint(
    loaded: LoadedModel, location: Location, device: torch.device, sha256: str, name: str, split: bool = False
) -> Checkpoint:
    """A loaded model frozen and on its device, once it is known to be one that can be analysed.

    split: over the processes of torchrun. Raises `UserError` for weights that are not numbers, and for models that
    cannot be masked or see later tokens.
    """
    _freeze(loaded.model, torch.device("cpu") if split else device)
    _refuse_not_finite(loaded.model, location.source)
    if split:
        shard(loaded.model, device)
    facts = _examine(loaded.model)
    return Checkpoint(
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        source=location.source,
        sha256=sha256,
        format=location.format,
        name=short_name(name),
        attention=facts,
        stated_loss=loaded.stated_loss,
        notes=(*loaded.notes, *facts.notes()),
    )


def dtype_of(name: str, auto: torch.dtype | str) -> torch.dtype | str:
    """The precision of a name, `auto` for "auto". Raises `UserError` for another name."""
    if name != "auto" and name not in _DTYPES:
        raise UserError(f"dtype={name} is not known; use auto, {', '.join(_DTYPES)}")
    return _DTYPES.get(name, auto)


def _sha256(files: tuple[Path, ...]) -> str:
    """`sha256_of`, which takes seconds per gigabyte, without reading unchanged files again."""
    stats = [file.stat() for file in files]
    return _sha256_when(files, tuple((stat.st_size, stat.st_mtime_ns, stat.st_ino) for stat in stats))


@lru_cache(maxsize=64)
def _sha256_when(files: tuple[Path, ...], stamps: tuple[tuple[int, ...], ...]) -> str:
    return sha256_of(files)


def check_device(device: torch.device) -> None:
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"device={device} cannot be used ({one_line(error, 120)}); use device=cpu or auto"
        ) from error


def _examine(model: PreTrainedModel) -> AttentionFacts:
    masked = MaskedModel(model)
    try:
        return examine(masked)
    finally:
        masked.close()


def _refuse_not_finite(model: PreTrainedModel, source: str) -> None:
    weights = dict(model.named_parameters())
    finite = torch.stack([weight.isfinite().all() for weight in weights.values()])
    bad = [name for name, sound in zip(weights, finite.tolist(), strict=True) if not sound]
    if bad:
        raise UserError(
            f"{source} holds NaN or infinity in {len(bad)} of {len(weights)} weights, first in {bad[0]}; "
            "give a checkpoint from before its training diverged"
        )


def _freeze(model: PreTrainedModel, device: torch.device) -> None:
    model.eval().requires_grad_(False)
    model.config.use_cache = False
    try:
        torch.nn.Module.to(model, device)
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(f"the model does not fit on {device}; use dtype=bfloat16 or device=cpu") from error
