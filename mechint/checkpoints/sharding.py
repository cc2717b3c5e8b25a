"""A model whose layers are split over the processes of torchrun, for models that one device cannot hold."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from mechint.errors import UserError
from mechint.runtime import distributed


def shard(model: PreTrainedModel, device: torch.device) -> None:
    """Split every layer's frozen weights evenly over the processes (FSDP2), and move the model to `device`.

    A layer is gathered while it computes, forward and backward. Embeddings, final norm and output embedding stay whole
    on every device: they are small beside the layers, and losses read the output embedding outside of the model.

    Raises UserError without torchrun, or where the layers are not one list.
    """
    if distributed.size() == 1:
        raise UserError("model.shard=true splits a model over several processes; start them with torchrun")
    count = model.config.get_text_config().num_hidden_layers
    lists = [m for m in model.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if len(lists) != 1 or model.base_model is model:
        raise UserError(
            f"architecture {model.config.model_type!r} cannot be split: its layers are not one list; "
            "use model.shard=false"
        )
    mesh = init_device_mesh(device.type, (distributed.size(),))
    for layer in lists[0]:
        fully_shard(layer, mesh=mesh)
    inside = {id(parameter) for parameter in lists[0].parameters()}
    whole = {parameter for parameter in model.parameters() if id(parameter) not in inside}
    for parameter in whole:
        parameter.data = parameter.data.to(device)
    for name, buffer in list(model.named_buffers()):
        model.get_submodule(name.rpartition(".")[0])._buffers[name.rpartition(".")[2]] = buffer.to(device)
    fully_shard(model.base_model, mesh=mesh, ignored_params=whole)
