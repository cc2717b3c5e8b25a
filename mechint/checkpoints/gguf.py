"""llama.cpp's `.gguf` files: weights (quantised or not), configuration and tokenizer in one."""

import contextlib
import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, GgufConfig, PreTrainedConfig
from transformers import PreTrainedTokenizerBase as Tokenizer

from mechint.checkpoints.checkpoint import LoadedModel, LoadOptions
from mechint.checkpoints.gguf_header import carry_over, read_header, refuse_unused_tensors
from mechint.checkpoints.gguf_split import gguf_parts, whole_gguf
from mechint.checkpoints.huggingface import architecture_notes, refuse_adapter
from mechint.checkpoints.instantiate import causal_class, from_pretrained
from mechint.checkpoints.pickles import refuse_placeholder
from mechint.checkpoints.quiet import quiet
from mechint.checkpoints.tokenizer import add_bos, checked
from mechint.errors import UserError, one_line


def load_gguf(file: Path, options: LoadOptions) -> LoadedModel:
    """The model in a GGUF file, or in all its parts, with its weights unpacked, and its tokenizer.

    Raises `UserError` if the packages of the `gguf` extra are missing, and for damaged files and
    architectures that transformers cannot read from GGUF.
    """
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{file.name} needs {' and '.join(missing)} to be read; pip install 'mechint[gguf]'")
    parts = gguf_parts(file)
    for part in parts:
        refuse_placeholder(part)
    refuse_adapter(file.parent)
    with whole_gguf(parts) as whole:
        header = read_header(whole)
        config, tokenizer = _read_metadata(whole, file, options.own_tokenizer)
        model_class, config = causal_class(config)
        carried = carry_over(header, config, options.ignore, file)
        with _silent():
            model, notes = from_pretrained(
                model_class,
                file,
                options,
                str(whole.parent),
                gguf_file=whole.name,
                config=config,
                # Otherwise transformers may fetch kernels to compute on packed blocks, and such a model cannot be
                # saved again.
                quantization_config=GgufConfig(dequantize=True),
                local_files_only=True,
            )
    refuse_unused_tensors(header, model, options.ignore, file)
    if tokenizer is not None and header.adds_bos:
        add_bos(tokenizer)
    return LoadedModel(model, parts, tokenizer, (*architecture_notes(config), *carried, *notes))


def _read_metadata(
    whole: Path, file: Path, with_tokenizer: bool
) -> tuple[PreTrainedConfig, Tokenizer | None]:
    directory, name = str(whole.parent), whole.name
    try:
        with _silent():
            config = AutoConfig.from_pretrained(directory, gguf_file=name, local_files_only=True)
            if not with_tokenizer:
                return config, None
            tokenizer = AutoTokenizer.from_pretrained(directory, gguf_file=name, local_files_only=True)
    except Exception as error:
        raise UserError(
            f"{file} is not a GGUF file that transformers can read ({one_line(error, 160)}); copy or save it again"
        ) from error
    return config, checked(tokenizer, str(file))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    # For some architectures transformers' GGUF reader draws a progress bar past its own switch for them.
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        yield
