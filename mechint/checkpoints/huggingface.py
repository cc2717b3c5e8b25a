"""Hugging Face directories, and single `.safetensors` files with a `config.json` beside them."""

import re
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers import __version__ as transformers_version

from mechint.checkpoints.checkpoint import LoadedModel, LoadOptions
from mechint.checkpoints.instantiate import causal_class, instantiate
from mechint.checkpoints.quiet import quiet
from mechint.checkpoints.tokenizer import read_tokenizer
from mechint.checkpoints.weights import checkpoint_inside, read_json, read_weights, weight_files
from mechint.errors import UserError, one_line

# Methods whose configuration class in transformers unpacks weights while it loads them.
DEQUANTIZING = {
    "mxfp4": "Mxfp4Config",
    "fp8": "FineGrainedFP8Config",
    "metal": "MetalConfig",
    "compressed-tensors": "CompressedTensorsConfig",
}
# Methods whose loaded models can be unpacked, and the package that does it.
UNPACKING = {"bitsandbytes": "bitsandbytes", "higgs": "flute-kernel"}


def load_directory(directory: Path, options: LoadOptions) -> LoadedModel:
    """The model and tokenizer that `save_pretrained` left in a directory.

    Reads local files only. Raises `UserError` for everything that is not a complete, unquantised,
    decoder-only language model of an architecture that transformers itself implements.
    """
    config, notes = _read_config(directory)
    files = weight_files(directory)
    tokenizer = read_tokenizer(directory) if options.own_tokenizer else None
    model, unused = instantiate(config, read_weights(files), options, directory)
    return LoadedModel(model, files, tokenizer, (*notes, *unused))


def load_safetensors(file: Path, options: LoadOptions) -> LoadedModel:
    """The model in one `.safetensors` file, with the `config.json` and tokenizer beside it.

    Raises `UserError` as `load_directory` does.
    """
    if re.search(r"-\d{5}-of-\d{5}$", file.stem):
        raise UserError(f"{file} is one shard of several; give its directory: checkpoint={file.parent}")
    if not (file.parent / "config.json").is_file():
        raise UserError(f"{file} needs the model's config.json beside it (in {file.parent}); put it there")
    config, notes = _read_config(file.parent)
    tokenizer = read_tokenizer(file.parent) if options.own_tokenizer else None
    model, unused = instantiate(config, read_weights((file,)), options, file)
    return LoadedModel(model, (file,), tokenizer, (*notes, *unused))


def architecture_notes(config: PreTrainedConfig) -> list[str]:
    """What a reader must know about the keys and values of an architecture."""
    notes = []
    if getattr(config, "kv_lora_rank", None):
        notes.append("K and V are expanded from a cached latent; masks on the expanded K and V save no cache")
    if getattr(config, "attention_k_eq_v", False):
        notes.append("K and V come from one projection")
    if shared := getattr(config, "num_kv_shared_layers", 0):
        notes.append(
            f"the last {shared} layers reuse K and V of earlier layers and have no cache of their own"
        )
    return notes


def refuse_adapter(directory: Path) -> None:
    """Raises `UserError` for a directory with a LoRA or other adapter: that is a change to a model."""
    if (directory / "adapter_config.json").is_file():
        raise UserError(
            f"{directory} holds an adapter, not a whole model; merge it first (peft: "
            "model.merge_and_unload(), then save_pretrained) and give that directory"
        )


def _read_config(directory: Path) -> tuple[PreTrainedConfig, list[str]]:
    """The configuration as transformers' own class for its `model_type`, and notes."""
    refuse_adapter(directory)
    content = _config_content(directory)
    kind = content.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        why = (
            "its own code would have to run, which is refused"
            if "auto_map" in content
            else "newer? misspelt?"
        )
        raise UserError(
            f"{directory}: transformers {transformers_version} does not implement model_type {kind!r} "
            f"({why}); give a checkpoint of an architecture that it implements"
        )
    try:
        with quiet():
            config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise UserError(
            f"{directory}/config.json is not a valid {kind} configuration ({one_line(error)})"
        ) from error
    causal_class(config)  # refuses other kinds of models before their weights are read
    drop_code_choices(config)
    notes = architecture_notes(config)
    if "auto_map" in content:
        notes.append(f"the checkpoint brings its own code; transformers' {kind} was used instead")
    return config, notes


def _config_content(directory: Path) -> dict[str, Any]:
    if not (directory / "config.json").is_file():
        files = sorted(file for suffix in ("pt", "pth", "gguf") for file in directory.glob(f"*.{suffix}"))
        advice = "give one, or a checkpoint file"
        if files:
            advice = f"give one, or its file: checkpoint={files[0]}"
        elif (newest := checkpoint_inside(directory)) is not None:
            advice = f"give the directory of one checkpoint, e.g. checkpoint={newest}"
        raise UserError(f"{directory} has no config.json, so it is not a Hugging Face directory; {advice}")
    content = read_json(directory / "config.json")
    if quantization := content.get("quantization_config"):
        raise UserError(_unquantise(directory, quantization))
    return content


def _unquantise(directory: Path, quantization: Any) -> str:
    """What to do with a directory whose weights are packed, by the method that packed them."""
    stated = quantization if isinstance(quantization, dict) else {"quant_method": quantization}
    method = stated.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in stated else "unknown")
    found = f"{directory} is stored quantised ({method})"
    if name := DEQUANTIZING.get(method):
        return (
            f"{found}; save it unquantised and give that: AutoModelForCausalLM.from_pretrained('{directory}', "
            f"quantization_config=transformers.{name}(dequantize=True)).save_pretrained('unquantised')"
        )
    if method in UNPACKING:
        return (
            f"{found}; save it unquantised and give that: AutoModelForCausalLM.from_pretrained('{directory}')"
            f".dequantize().save_pretrained('unquantised') (needs the package {UNPACKING[method]})"
        )
    return f"{found}, which transformers cannot undo; give the unquantised model that it was made from"


def drop_code_choices(config: PreTrainedConfig) -> None:
    """What runs, and what comes back beside the logits, is not the checkpoint's choice; attention is chosen on loading.

    Parts of a configuration, such as those of a multimodal model, are treated alike.
    """
    for name in config.sub_configs:
        if isinstance(part := getattr(config, name, None), PreTrainedConfig):
            drop_code_choices(part)
    config.return_dict = True
    for name in ("output_attentions", "output_hidden_states", "torchscript"):
        if getattr(config, name, False):
            setattr(config, name, False)
    config._experts_implementation = None
    if hasattr(config, "fusion_config"):
        delattr(config, "fusion_config")
