"""What a nanoGPT-style checkpoint says about its model beside the weights, and which of it GPT-2 can follow.

Forks of nanoGPT add settings of their own. Those that are known are followed; one that is not, and could change what
the model computes, is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechint.errors import UserError

HEADS = ("n_head", "n_heads", "num_heads", "num_attention_heads", "nhead")
KV_HEADS = (
    *("n_kv_head", "n_kv_heads", "num_kv_heads", "num_key_value_heads", "n_query_groups", "num_query_groups"),
    *("kv_heads", "kv_head", "n_kv_group", "n_kv_groups", "num_kv_groups", "n_kv", "n_head_kv"),
)
VOCABULARY = ("vocab_size", "padded_vocab_size", "n_vocab")
LAYERS = ("n_layer", "n_layers", "num_layers", "num_hidden_layers")
WIDTH = ("n_embd", "n_embed", "d_model", "hidden_size", "dim")
ACTIVATION = (
    "activation",
    "act",
    "act_fn",
    "hidden_act",
    "activation_function",
    "mlp_activation",
    "nonlinearity",
)
EPSILON = ("layer_norm_epsilon", "layernorm_epsilon", "layer_norm_eps", "norm_eps", "ln_eps", "eps")
NORM = ("norm", "norm_type", "norm_class", "normalization")
TIED = ("kv_tying", "tie_kv", "kv_tied", "tied_kv", "kv_tie", "share_kv", "shared_kv", "k_eq_v")
TRANSPOSED = ("kv_transpose_tying", "kv_transpose", "tie_kv_transpose", "k_eq_vt")

# Where checkpoints keep settings; later ones have the last word. The last ones describe the model alone.
_TRAINING = ("args", "hparams", "hyper_parameters", "cfg", "config")
_MODEL = ("model_config", "gpt_config", "model_args")

# transformers' names of activation functions.
_ACTIVATIONS = {
    **dict.fromkeys(("gelu", "gelu_exact", "gelu_none", "nn.gelu"), "gelu"),
    **dict.fromkeys(("gelu_new", "gelu_tanh", "gelu_approx", "gelu_pytorch_tanh", "newgelu"), "gelu_new"),
    **dict.fromkeys(("relu", "nn.relu"), "relu"),
    **dict.fromkeys(("relu2", "relu^2", "relu_squared", "squared_relu", "relusquared"), "relu2"),
    **dict.fromkeys(("silu", "swish", "nn.silu"), "silu"),
}
_LAYER_NORMS = {"layernorm", "layer_norm", "nn.layernorm", "ln"}

# Read off the weights, or without effect on what a trained model computes.
_HARMLESS = re.compile(
    r"block_size|context_length|ctx_len|n_ctx|n_positions|seq_len\w*|max_seq_len\w*|max_position_embeddings|sequence_length"
    r"|n_inner|intermediate_size|ffn_dim|d_ff|mlp_ratio|bias|use_bias|\w*bias|weight_tying|tie_weights|tie_word_embeddings"
    r"|tied_embeddings|head_dim|head_size|d_head|\w*drop\w*|\w*pdrop|\w*flash\w*|\w*sdpa\w*|attn_impl\w*|attention_impl\w*"
    r"|init\w*|\w*_init|\w*init_\w*|\w*compile\w*|\w*checkpointing|use_cache|d?type|\w*dtype|device\w*|\w*name|\w*_token_id"
    r"|\w*_id|seed|\w*loss\w*|\w*lr\w*|\w*learning_rate\w*|\w*decay\w*|\w*beta\d?|\w*batch\w*|wandb\w*|\w*log\w*interval"
    r"|\w*eval\w*|\w*iters|\w*steps|\w*clip|\w*path|\w*dir|dataset\w*|model_type|\w*optim\w*|backend|\w*ddp\w*|\w*fsdp\w*"
    r"|mode|task|version|tokenizer\w*|\w*warmup\w*|\w*epochs?|\w*momentum|\w*project|\w*workers",
    re.IGNORECASE,
)
# Words in the names of settings of a training run that speak of the model.
_OF_THE_MODEL = re.compile(
    r"activ|softcap|soft_cap|logit|window|slid|rope|rotary|alibi|norm|qk|gate|swiglu|geglu|glu|attn|attention|head|expert"
    r"|moe|scale|mup|position|pos_emb|embed|residual|mlp|ffn|parallel|sink|kv|layer|skip|value_emb|mixer|conv|recur",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Settings:
    """What a checkpoint says about its model: the settings by name, without those that are off or unknown."""

    values: Mapping[str, Any]
    path: Path

    def first(self, names: Sequence[str]) -> Any:
        """The value of the first of these names that is there, None if none is."""
        return next((self.values[name] for name in names if name in self.values), None)

    @property
    def activation(self) -> str:
        """transformers' name of the activation function; nanoGPT's own is the exact GELU.

        Raises UserError for one that is not known.
        """
        name = str(self.first(ACTIVATION) or "gelu")
        if name.lower() not in _ACTIVATIONS:
            raise UserError(
                f"{self.path} says activation {name!r}, which is not known; use one of "
                f"{', '.join(sorted(set(_ACTIVATIONS.values())))}, or save the model as a Hugging Face directory"
            )
        return _ACTIVATIONS[name.lower()]

    @property
    def epsilon(self) -> float:
        """What layer norms add to the variance."""
        stated = self.first(EPSILON)
        return 1e-5 if stated is None else float(stated)

    @property
    def kv_heads(self) -> int | None:
        """The number of KV heads, None where the file does not say."""
        stated = self.first(KV_HEADS)
        return int(stated) if isinstance(stated, int) else None

    @property
    def tied(self) -> bool:
        """Whether the file says that one projection gives keys and values."""
        return any(self.values.get(name) for name in TIED)


def read_settings(checkpoint: Mapping[str, Any], path: Path, ignore: Sequence[str]) -> Settings:
    """What the checkpoint says about its model; `model_args` has the last word over the training `config`.

    ignore: names of settings to take as harmless. Raises UserError for one that is not known and could change what the
    model computes.
    """
    values: dict[str, Any] = {}
    unknown: dict[str, Any] = {}
    known = {
        *HEADS,
        *KV_HEADS,
        *VOCABULARY,
        *LAYERS,
        *WIDTH,
        *ACTIVATION,
        *EPSILON,
        *NORM,
        *TIED,
        *TRANSPOSED,
    }
    for container in (*_TRAINING, *_MODEL):
        of_the_model = container in _MODEL
        for name, value in _flat(checkpoint.get(container)).items():
            if value is None:
                continue
            if name in known:
                values[name] = value
            elif _is_off(value) or name in ignore or _HARMLESS.fullmatch(name):
                unknown.pop(name, None)
            elif of_the_model or _OF_THE_MODEL.search(name):
                unknown[name] = value
    if unknown:
        listed = ", ".join(f"{name}={value!r}" for name, value in list(unknown.items())[:4])
        raise UserError(
            f"{path} has settings that nanoGPT's model lacks and that could change what it computes: {listed}; save "
            f"the model as a Hugging Face directory of its own architecture, or, if they change nothing, give "
            f"'model.ignore=[{','.join(unknown)}]'"
        )
    norm = next((values[name] for name in NORM if name in values), "layernorm")
    if str(norm).lower() not in _LAYER_NORMS and not set(NORM) & set(ignore):
        raise UserError(
            f"{path} says norm {norm!r}, but GPT-2 has layer norms; save it as a Hugging Face directory"
        )
    return Settings(values, path)


def _flat(settings: Any) -> dict[str, Any]:
    """Settings with those of nested sections beside them, by their own names."""
    found: dict[str, Any] = {}
    if not isinstance(settings, Mapping):
        return found
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found = {**_flat(value), **found}
        else:
            found[str(name)] = value
    return found


def _is_off(value: Any) -> bool:
    """Whether a setting says no to something."""
    if isinstance(value, str):
        return value.lower() in {"", "none", "false", "off", "no", "null"}
    return isinstance(value, bool | int | float | list | tuple) and not value
