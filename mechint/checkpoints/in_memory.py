"""A model that is already in memory, in place of a file: for notebooks and training scripts."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mechint.checkpoints.checkpoint import Checkpoint, LoadedModel
from mechint.checkpoints.huggingface import architecture_notes, drop_code_choices
from mechint.checkpoints.loader import CheckpointLoader, as_checkpoint, check_device, dtype_of
from mechint.checkpoints.location import Location
from mechint.checkpoints.multimodal import text_decoder
from mechint.checkpoints.tokenizer import checked, find_tokenizer
from mechint.errors import UserError

# What wrappers of a training run keep the model under: torch.compile, DDP and Lightning.
_INSIDE = ("_orig_mod", "module", "_fsdp_wrapped_module")


class ModelInMemory(CheckpointLoader):
    """Gives a model object as a checkpoint. The object itself stays as it is: training mode, gradients and all.

    model: a language model of transformers, also wrapped by torch.compile or DDP. tokenizer: its tokenizer, or a
    directory or hub id; None for data sets of ready tokens. Raises UserError for other objects.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase | str | None = None) -> None:
        super().__init__(tokenizer=tokenizer if isinstance(tokenizer, str) else None)
        self._model = _language_model(model)
        self._tokenizer = None if isinstance(tokenizer, str) else tokenizer

    @property
    def source(self) -> str:
        """What stands for the model where a checkpoint is named, e.g. `memory:LlamaForCausalLM`."""
        return f"memory:{type(self._model).__name__}"

    def load(self, source: str, device: torch.device, dtype: str) -> Checkpoint:
        """The model, frozen; its weights are shared where `device` and precision are the object's own.

        `dtype` as for `CheckpointLoader`: "auto" is float32 on a CPU, the object's own elsewhere.
        Raises `UserError` for everything that cannot be analysed.
        """
        check_device(device)
        precision = dtype_of(dtype, "auto" if device.type != "cpu" else torch.float32)
        view = _frozen_view(self._model)
        drop_code_choices(view.config)
        view, notes = text_decoder(view)
        if isinstance(precision, torch.dtype):
            view = view.to(precision)  # type: ignore[arg-type]
        if self._tokenizer is not None:
            tokenizer: PreTrainedTokenizerBase | None = checked(self._tokenizer, "the model's tokenizer")
        else:
            tokenizer = None if self.tokenizer is None else find_tokenizer(self.tokenizer)
        loaded = LoadedModel(view, (), tokenizer, (*architecture_notes(view.config), *notes))
        name = str(getattr(self._model.config, "_name_or_path", "")) or type(self._model).__name__
        location = Location("memory", Path(), self.source)
        return as_checkpoint(loaded, location, device, _digest(self._model), name)

    def fingerprint(self, source: str) -> str:
        """Hex SHA-256 of the weights, the configuration and a tokenizer object as they are now."""
        config = self._model.config.to_json_string(use_diff=False)
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        words = "" if backend is None else backend.to_str()
        return hashlib.sha256(f"{_digest(self._model)}\n{config}\n{words}".encode()).hexdigest()


def _language_model(model: Any) -> PreTrainedModel:
    while isinstance(model, nn.Module) and (names := [name for name in _INSIDE if hasattr(model, name)]):
        model = getattr(model, names[0])
    if hasattr(model, "merge_and_unload"):
        raise UserError("the model has an adapter; give model.merge_and_unload() instead")
    if not isinstance(model, PreTrainedModel):
        raise UserError(
            f"checkpoint is a {type(model).__name__}, but must be a path, a hub id, bundled:NAME or a language model "
            "of transformers"
        )
    if getattr(model, "is_quantized", False):
        raise UserError("the model's weights are packed; load it unquantised")
    if not model.can_generate() or model.get_output_embeddings() is None:
        raise UserError(
            f"{type(model).__name__} is not a language model; give one with a head, such as a ...ForCausalLM"
        )
    if len({str(parameter.device) for parameter in model.parameters()}) > 1:
        raise UserError(
            "the model's weights are on several devices; move it to one, for example model.to('cpu')"
        )
    return model


def _frozen_view(model: PreTrainedModel) -> PreTrainedModel:
    """The same modules once more, with weights that share the model's memory and take no gradients."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    memo |= {id(buffer): buffer for buffer in model.buffers()}
    return copy.deepcopy(model, memo).eval()


def _digest(model: PreTrainedModel) -> str:
    """Hex SHA-256 over names, types, shapes and numbers of all weights."""
    digest = hashlib.sha256()
    state: dict[str, Tensor] = model.state_dict()
    for name in sorted(state):
        tensor = state[name].detach().contiguous().cpu()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()
