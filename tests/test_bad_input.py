"""What a user may get wrong, and what a stranger's file may try: one line, exit code 2, nothing that looks finished.

`python -m pytest tests/test_bad_input.py -s` prints the table with every message. Most cases run only the step of a
program that refuses them; SAMPLES of every step run the whole program, and so does what only a run finds out.
"""

from __future__ import annotations

import copy
import functools
import json
import runpy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bad_files as bad
import pytest
import torch
from bad_files import Payload, Put
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra_application import SMALL, logging_as_before
from omegaconf import DictConfig
from small_data import BYTES

from mechint import config as configuration
from mechint.checkpoints import CheckpointLoader
from mechint.comparison.compare import read_comparison
from mechint.comparison.study import read_study
from mechint.config.guard import check_config
from mechint.reporting import Visualizer
from mechint.reporting.redrawing import redraw_run
from mechint.runtime.memory import held_bytes, peak_bytes


@dataclass(frozen=True)
class Case:
    """What is put there, what is typed, and words of the message."""

    title: str
    words: str
    arguments: tuple[str, ...]
    put: Put = lambda here, good: None
    script: str = "analyze"


def analyze(title: str, words: str, *arguments: str, put: Put = lambda here, good: None) -> Case:
    return Case(title, words, arguments, put)


def checkpoint(title: str, words: str, put: Put, source: str = "m", *arguments: str) -> Case:
    return Case(title, words, (f"checkpoint={source}", *arguments), put)


def text(title: str, words: str, content: bytes, *arguments: str) -> Case:
    return Case(title, words, ("dataset=text", "dataset.path=t.txt", *arguments), bad.file("t.txt", content))


def tokens(title: str, words: str, content: bytes, *arguments: str) -> Case:
    return Case(
        title, words, ("dataset=tokens", "dataset.path=t.bin", *arguments), bad.file("t.bin", content)
    )


def other(script: str, title: str, words: str, *arguments: str, put: Put = lambda here, good: None) -> Case:
    return Case(title, words, arguments, put, script)


HUGE = 10**12
CPU = torch.device("cpu")

# Whatever a file claims to hold, its refusal takes no more memory than this.
MOST_BYTES = 2**28
CHECKPOINTS = [
    analyze("no checkpoint", "empty", "checkpoint="),
    analyze("file that is not there", "no such file", "checkpoint=nowhere.pt"),
    analyze("bundled model that is not there", "no bundled model", "checkpoint=bundled:huge"),
    analyze("pattern", "checkpoint_glob", "checkpoint='*.pt'"),
    checkpoint("unknown ending", "files ending in .onnx", bad.file("m.onnx", b"x"), "m.onnx"),
    checkpoint("empty .pt", "is empty", bad.file("m.pt"), "m.pt"),
    checkpoint("text as .pt", "not a PyTorch checkpoint", bad.file("m.pt", b"hello " * 99), "m.pt"),
    checkpoint(
        "git-lfs pointer", "git lfs pull", bad.file("m.pt", b"version https://git-lfs.github.com"), "m.pt"
    ),
    checkpoint("directory named m.pt", "holds no weights", bad.directory("m.pt"), "m.pt"),
    checkpoint("empty directory", "holds no weights", bad.directory("m")),
    checkpoint("named pipe", "not a file", bad.pipe("m.pt"), "m.pt"),
    checkpoint("link to itself", "m.pt", bad.link("m.pt", "m.pt"), "m.pt"),
    checkpoint("endless device", "not a file", bad.link("m.pt", "/dev/zero"), "m.pt"),
    checkpoint("list in .pt", "not a state dict", bad.pickled("m.pt", [1]), "m.pt"),
    checkpoint("no state dict", "no state dict", bad.pickled("m.pt", {"a": 1}), "m.pt"),
    checkpoint("code in .pt", "would have to run code", bad.pickled("m.pt", {"model": Payload()}), "m.pt"),
    checkpoint("code in a bare pickle", "m.pt", bad.bare_pickle("m.pt", {"model": Payload()}), "m.pt"),
    checkpoint("archive bomb", "m.pt", bad.file("m.pt", functools.partial(bad.bomb, 0.4)), "m.pt"),
    checkpoint("empty state dict", "no state dict", bad.pickled("m.pt", {"model": {}}), "m.pt"),
    checkpoint("no heads named", "model.num_heads=N", bad.nanogpt(n_head=None), "m.pt"),
    checkpoint("number of heads that does not divide", "cannot be split", bad.nanogpt(n_head=3), "m.pt"),
    checkpoint("zero heads", "cannot be split", bad.nanogpt(n_head=0), "m.pt"),
    checkpoint(
        "heads against the checkpoint", "model.num_heads=2", bad.nanogpt(), "m.pt", "model.num_heads=2"
    ),
    checkpoint(
        "zero layers",
        "not a nanoGPT-style",
        bad.nanogpt(lambda w: [w.pop(n) for n in list(w) if ".h." in n]),
        "m.pt",
    ),
    checkpoint(
        "missing weight",
        "lacks transformer.h.1.mlp.c_proj.weight",
        bad.nanogpt(lambda w: w.pop("transformer.h.1.mlp.c_proj.weight")),
        "m.pt",
    ),
    checkpoint(
        "wrong shape",
        "does not fit",
        bad.nanogpt(lambda w: w.update({"transformer.h.1.mlp.c_proj.weight": torch.zeros(3, 5)})),
        "m.pt",
    ),
    checkpoint(
        "scalar for a matrix",
        "m.pt",
        bad.nanogpt(lambda w: w.update({"transformer.wte.weight": torch.tensor(1.0)})),
        "m.pt",
    ),
    checkpoint(
        "layer number a thousand million",
        "m.pt",
        bad.nanogpt(lambda w: w.update({"transformer.h.1000000000.ln_1.weight": torch.zeros(16)})),
        "m.pt",
    ),
    checkpoint(
        "NaN in a weight",
        "transformer.h.1.mlp.c_proj.weight",
        bad.nanogpt(lambda w: w["transformer.h.1.mlp.c_proj.weight"][0].fill_(torch.nan)),
        "m.pt",
    ),
    checkpoint("empty .safetensors", "config.json beside it", bad.file("m.safetensors"), "m.safetensors"),
    checkpoint("weights cut short", "damaged", bad.in_model("model.safetensors", bad.half)),
    checkpoint(
        "weights that are a web page", "not a safetensors", bad.in_model("model.safetensors", b"<html>" * 9)
    ),
    checkpoint(
        "header of 2^62 bytes",
        "not a safetensors",
        bad.in_model("model.safetensors", bad.safetensors_header(2**62)),
    ),
    checkpoint(
        "tensor of 2^60 bytes",
        "not a safetensors",
        bad.in_model("model.safetensors", bad.safetensors_shape([2**29, 2**29], 2**60)),
    ),
    checkpoint(
        "weight missing in safetensors",
        "lacks 1 of the weights",
        bad.weights(lambda w: w.pop("model.norm.weight")),
    ),
    checkpoint(
        "infinity in a weight",
        "model.norm.weight",
        bad.weights(lambda w: w["model.norm.weight"].fill_(torch.inf)),
    ),
    checkpoint("config.json cut short", "not valid JSON", bad.in_model("config.json", bad.half)),
    checkpoint("config.json that is a list", "JSON object", bad.in_model("config.json", b"[1]")),
    checkpoint(
        "config.json that is binary", "not valid JSON", bad.in_model("config.json", bytes(range(128, 256)))
    ),
    checkpoint("deeply nested config.json", "m", bad.in_model("config.json", b"[" * 100_000)),
    checkpoint("unknown architecture", "model_type 'martian'", bad.model(model_type="martian")),
    checkpoint("no architecture", "model_type None", bad.model(model_type=None)),
    checkpoint("architecture that is a list", "model_type", bad.model(model_type=["llama"])),
    checkpoint("own code", "own code", bad.model(model_type="x", auto_map={"AutoModelForCausalLM": "x.X"})),
    checkpoint("encoder-decoder", "encoder-decoder", bad.model(model_type="t5")),
    checkpoint("encoder", "not a decoder-only", bad.model(model_type="vit")),
    checkpoint("quantised", "stored quantised", bad.model(quantization_config={"quant_method": "gptq"})),
    checkpoint("no layers", "m", bad.model(num_hidden_layers=0)),
    checkpoint("ten million layers", "m", bad.model(num_hidden_layers=10**7)),
    checkpoint("negative layers", "m", bad.model(num_hidden_layers=-1)),
    checkpoint("layers in words", "m", bad.model(num_hidden_layers="three")),
    checkpoint("no heads", "m", bad.model(num_attention_heads=0)),
    checkpoint("vocabulary of 10^12", "m", bad.model(vocab_size=HUGE)),
    checkpoint("width of 10^6", "m", bad.model(hidden_size=10**6)),
    checkpoint("unknown activation", "m", bad.model(hidden_act="swoosh")),
    checkpoint(
        "adapter", "merge it first", bad.several(bad.model(), bad.file("m/adapter_config.json", b"{}"))
    ),
    checkpoint("tokenizer cut short", "tokenizer in", bad.in_model("tokenizer.json", bad.half)),
    checkpoint("GGUF that is text", "not a GGUF", bad.file("m.gguf", b"hello" * 99), "m.gguf"),
    checkpoint("GGUF of 2^60 entries", "not a GGUF", bad.file("m.gguf", bad.gguf(2**60, 2**60)), "m.gguf"),
    checkpoint(
        "GGUF array of 2^60 numbers", "not a GGUF", bad.file("m.gguf", bad.gguf_array(2**60)), "m.gguf"
    ),
    checkpoint(
        "GGUF tensor of 2^40 numbers", "not a GGUF", bad.file("m.gguf", bad.gguf_tensor(2**20)), "m.gguf"
    ),
    analyze("tokenizer that is not there", "model.tokenizer=./none", "model.tokenizer=./none"),
]
DATA = [
    analyze("text without a path", "dataset.path", "dataset=text"),
    analyze("text that is not there", "none.txt", "dataset=text", "dataset.path=none.txt"),
    analyze("directory without text", "no .txt", "dataset=text", "dataset.path=d", put=bad.directory("d")),
    text("empty text", "is empty", b""),
    text("blank text", "is empty", b" \n\n "),
    text("invalid UTF-8", "not UTF-8", b"good \xff\xfe bad" * 99),
    text("binary as text", "is not text", bytes(range(256)) * 9),
    text("one token", "only", b"a"),
    text("held-out share of 2", "evaluation_fraction", b"abc" * 999, "dataset.evaluation_fraction=2"),
    text("held-out share NaN", "evaluation_fraction", b"abc" * 999, "dataset.evaluation_fraction=nan"),
    tokens("empty token file", "it is empty", b""),
    tokens("half a token", "no whole number", b"abc"),
    tokens("one-token data set", "only", b"a\0"),
    tokens("tokens outside the vocabulary", "vocabulary", b"\xff\x7f" * 5000),
    tokens("unknown integer type", "dataset.dtype", b"a\0" * 99, "dataset.dtype=int8"),
    analyze(
        "tokens that are a directory", "train.bin", "dataset=tokens", "dataset.path=d", put=bad.directory("d")
    ),
    analyze("sequence longer than the positions", "positions", "dataset.sequence_length=100000"),
    analyze("sequence of no tokens", "sequence_length", "dataset.sequence_length=0"),
    analyze("sequence length in words", "sequence_length", "dataset.sequence_length=long"),
    analyze("no calibration tokens", "calibration_tokens", "dataset.calibration_tokens=0"),
    analyze("fewer evaluation tokens than a sequence", "evaluation_tokens", "dataset.evaluation_tokens=5"),
]
SETTINGS = [
    *(
        analyze(f"target_sparsity={value}", "target_sparsity", f"target_sparsity={value}")
        for value in ("1.0", "-0.1", "nan", "inf", "most")
    ),
    analyze("steps=0", "steps", "steps=0"),
    analyze("steps=-3", "steps", "steps=-3"),
    analyze("steps=1.5", "steps", "steps=1.5"),
    analyze("seed=-1", "seed", "seed=-1"),
    analyze("device that is not there", "device=cuda", "device=cuda:77"),
    analyze("unknown device", "device=toaster", "device=toaster"),
    analyze("unknown dtype", "dtype=int8", "dtype=int8"),
    analyze("unknown key", "target_sparcity", "target_sparcity=0.5"),
    analyze("unknown key of a group", "trainer", "+trainer.colour=red"),
    analyze("unknown option", "magic", "mask=magic"),
    analyze("unknown group", "colour", "colour=red"),
    analyze("grammar", "no viable alternative", "target_sparsity=[0.5"),
    analyze("sweep without -m", "-m", "target_sparsity=0.5,0.9"),
    analyze("unknown unit", "unit", "mask.unit=neuron"),
    analyze("unknown scope", "scope", "mask.scope=galaxy"),
    analyze("unknown ablation", "'ablation/noise'", "ablation=noise"),
    analyze("ablation where it used to be", "use ablation=zero or ablation=mean", "mask.ablation=mean"),
    analyze("K's sparsity against V's and the whole", "sparsity", "mask.key_sparsity=1.5"),
    analyze("K and V tied with targets of their own", "tie_kv", "mask.tie_kv=true", "mask.key_sparsity=0.5"),
    analyze("batch size 0", "batch_size", "trainer.batch_size=0"),
    analyze("batch size in words", "batch_size", "trainer.batch_size=big"),
    analyze(
        "compiled and recomputed",
        "trainer.compile",
        "trainer.compile=true",
        "trainer.activation_checkpointing=true",
    ),
    analyze("more steps than passes", "trainer.passes", "trainer.passes=2"),
    analyze("split over one process", "torchrun", "model.shard=true"),
    analyze("several targets and seeds", "not supported", "target_sparsity=[0.5,0.9]", "seeds=2"),
    analyze("log_every=0", "log_every", "trainer.log_every=0"),
    analyze("save_every=0", "save_every", "trainer.save_every=0"),
    analyze(
        "schedule that ends before it begins",
        "begin",
        "sparsity_schedule.begin=0.9",
        "sparsity_schedule.end=0.1",
    ),
    analyze("learning rate below zero", "lr=-1", "optimizer.lr=-1"),
    analyze("learning rate NaN", "lr=nan", "optimizer.lr=nan"),
    analyze("class from elsewhere", "not allowed", "optimizer._target_=os.system"),
    analyze(
        "output_dir that is a file",
        "is a file; give a directory",
        "output_dir=t.txt",
        put=bad.file("t.txt", b"x"),
    ),
    analyze("output_dir of another program", "another program", put=bad.file("out/result.json", b"x")),
    analyze("output_dir with a NUL", "NUL character", "output_dir='a\0b'"),
]
KINDS = [
    *(
        analyze(f"{setting.partition('=')[0]} of the wrong kind", setting.partition("=")[0], setting)
        for setting in (
            "trainer.compile=abc",
            "trainer.dense_cache_gib=lots",
            "trainer.selection_fraction=abc",
            "trainer.passes=many",
            "trainer.learning_rate_decay=abc",
            "mask.tie_kv=abc",
            "mask.finishing_trials=null",
            "mask.key_sparsity=abc",
            "model.num_heads=abc",
            "stability.subset_sizes=abc",
            "sparsity_schedule.begin=abc",
        )
    ),
    analyze("dots per inch in words", "visualizer.dpi", "visualizer=default", "visualizer.dpi=abc"),
    analyze("dots per inch of a poster", "visualizer.dpi", "visualizer=default", "visualizer.dpi=1000000"),
    analyze("cache that is NaN", "trainer.dense_cache_gib", "trainer.dense_cache_gib=nan"),
    analyze("batch of 10^11", "trainer.batch_size", "trainer.batch_size=100000000000"),
    analyze("10^11 seeds", "seeds", "seeds=100000000000"),
    analyze("10^9 targets", "too many", "target_sparsity=0:0.9:1e-9"),
    analyze("targets without an end", "too many", "target_sparsity=0:inf:0.1"),
    analyze("targets too close", "too close", "target_sparsity=[0.9,0.90000001]"),
    analyze("group that is null", "name one of its options", "mask=null"),
    analyze("class that is not there", "no class", "optimizer._target_=torch.optim.nope"),
    analyze("device without numbers", "device=meta", "device=meta"),
    analyze("learning rate of 10^300", "lower optimizer.lr", "optimizer.lr=1e300"),
    analyze("name longer than names can be", "too long", f"output_dir={'a' * 300}"),
    analyze("checkpoint with a long name", "too long", f"checkpoint={'a' * 5000}"),
    analyze("control characters in a name", "no such file", "checkpoint='a\x1bb.pt'"),
]
OTHERS = [
    *(
        other(script, f"{script} into a file", "t.txt", "output_dir=t.txt", put=bad.file("t.txt", b"x"))
        for script in ("compare", "validate", "pretrain", "benchmark")
    ),
    *(
        other(script, f"{script} into a run", "holds a run", *words, put=bad.file("out/result.json", b"{}"))
        for script, words in (
            ("validate", ("steps=1", "seeds=1", "output_dir=out")),
            ("pretrain", ("steps=1", "output_dir=out")),
        )
    ),
    other("pretrain", "model in the way", "holds a model", "output_dir=out", put=bad.file("out/config.json")),
    other("pretrain", "no batch", "pretrainer.batch_size", "pretrainer.batch_size=0", "output_dir=out"),
    other("pretrain", "seed below zero", "seed=-1", "seed=-1", "output_dir=out"),
    other("validate", "seed too large", "seed", "seed=99999999999999999999", "output_dir=out"),
    other("validate", "nothing planted", "name one of its options", "planted=null", "output_dir=out"),
    other("benchmark", "methods in words", "what.methods", "what.methods=null", "output_dir=out"),
    *(
        other(
            "compare",
            f"variants from {title}",
            "not a YAML file",
            "variants=v.yaml",
            "output_dir=out",
            put=bad.file("v.yaml", content),
        )
        for title, content in (
            ("broken YAML", b"A: [1"),
            ("bytes", b"\xff\xfe\x00A: b"),
            ("YAML that would run code", b"A: !!python/object/apply:os.system ['touch proof']"),
        )
    ),
    other("compare", "variants that are numbers", "give it a directory", "variants={A: 5, B: [null]}"),
    other("compare", "dots per inch of none", "dpi=0", "tree=.", "dpi=0", "output_dir=out"),
    other(
        "visualize", "result.json that is a pipe", "plain file", "run=run", put=bad.pipe("run/result.json")
    ),
    other(
        "visualize",
        "result.json without an end",
        "plain file",
        "run=run",
        put=bad.link("run/result.json", "/dev/zero"),
    ),
    other(
        "visualize",
        "result.json nested too deeply",
        "nested too deeply",
        "run=run",
        put=bad.file("run/result.json", b"[" * 200_000),
    ),
    other(
        "visualize",
        "run of a later version",
        "schema version 99",
        "run=run",
        put=bad.run_directory(schema_version=99),
    ),
]
RUNS = [
    other("visualize", "no run", "run", "run=nowhere"),
    other(
        "visualize",
        "result.json cut short",
        "result.json",
        "run=run",
        put=bad.file("run/result.json", b'{"a":'),
    ),
    other(
        "visualize",
        "result.json that is a list",
        "result.json",
        "run=run",
        put=bad.file("run/result.json", b"[]"),
    ),
    other("visualize", "result.json of numbers", "run", "run=run", put=bad.run_directory(layers=[1, 2])),
    other("visualize", "run without masks", "mask", "run=run", put=bad.run_directory()),
    other(
        "visualize",
        "code in the masks",
        "final_masks.pt",
        "run=run",
        put=bad.several(bad.run_directory(), bad.pickled("run/final_masks.pt", {"a": Payload()})),
    ),
    other(
        "visualize",
        "run that failed",
        "status failed",
        "run=run",
        put=bad.run_directory(status="failed", metrics={}, error="x"),
    ),
    other(
        "visualize",
        "code in an old result",
        "would have to run code",
        "run=run",
        put=bad.several(bad.directory("run"), bad.pickled("run/final_masks.pt", {"a": Payload()})),
    ),
    other("compare", "nothing to compare", "variants", "output_dir=out"),
    other(
        "compare",
        "directory that is not there",
        "nowhere",
        "variants={A: nowhere, B: nowhere}",
        "output_dir=out",
    ),
    other("compare", "empty tree", "no finished run", "tree=d", "output_dir=out", put=bad.directory("d")),
    other(
        "compare",
        "code in LeanK's masks",
        "m.pth",
        "variants={A: m.pth, B: m.pth}",
        "output_dir=out",
        put=bad.pickled("m.pth", [Payload()]),
    ),
]
CASES = [*CHECKPOINTS, *DATA, *SETTINGS, *KINDS, *OTHERS, *RUNS]
SAMPLES = {  # of every step, also in a hurry
    "no checkpoint",
    "code in .pt",
    "weights cut short",
    "empty text",
    "steps=0",
    "unknown option",
    "no run",
    "empty tree",
    "variants from broken YAML",
}
MORE_SAMPLES = {
    "file that is not there",
    "wrong shape",
    "GGUF array of 2^60 numbers",
    "tokens outside the vocabulary",
    "unknown key",
    "unknown ablation",
    "code in an old result",
}
ONLY_WHOLE = {  # what only a program finds out
    "device that is not there",
    "unknown device",
    "unknown dtype",
    "sweep without -m",
    "unknown unit",
    "unknown scope",
    "K and V tied with targets of their own",
    "compiled and recomputed",
    "more steps than passes",
    "split over one process",
    "learning rate below zero",
    "learning rate NaN",
    "output_dir that is a file",
    "output_dir of another program",
    "output_dir with a NUL",
    "device without numbers",
    "learning rate of 10^300",
    "name longer than names can be",
    "checkpoint with a long name",
    "control characters in a name",
    "compare into a file",
    "dots per inch of none",
    "nothing to compare",
}

TAKES_SECONDS = {"archive bomb"}  # to make


def configured(words: list[str]) -> DictConfig:
    """The configuration of an analysis, checked as before a run."""
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base=configuration.VERSION_BASE):
        loader = GlobalHydra.instance().config_loader()
        overrides = OverridesParser.create(loader).parse_overrides(words)
        groups = [each.input_line for each in overrides if loader.get_group_options(each.key_or_group)]
        config = copy.deepcopy(composed(tuple(groups)))
        values = [each for each in overrides if each.input_line not in groups]
        ConfigLoaderImpl._apply_overrides_to_config(
            values, config
        )  # what compose does, without its tenths of seconds
        check_config(config)
    return config


@functools.cache
def composed(groups: tuple[str, ...]) -> DictConfig:
    return compose("analyze", list(groups), return_hydra_config=True)


def typed(words: list[str]) -> dict[str, Any]:
    """What is typed, by its keys."""
    return {each.key_or_group: each.value() for each in OverridesParser.create().parse_overrides(words)}


def load_checkpoint(words: list[str]) -> None:
    values = typed(words)
    loader = CheckpointLoader(**{key[6:]: value for key, value in values.items() if key.startswith("model.")})
    loader.fingerprint(values["checkpoint"])
    loader.load(values["checkpoint"], CPU, "auto")


def load_data(words: list[str]) -> None:
    configuration.build(configured(words).dataset).load(BYTES, "bytes", 256, 64, 0)


def build_analysis(words: list[str]) -> None:
    configuration.build_analysis(configured(words))


def draw(words: list[str]) -> None:
    redraw_run(Path(typed(words)["run"]), Visualizer([]))


def compare(words: list[str]) -> None:
    values = typed(words)
    if "tree" in values:
        read_study(values["tree"])
    else:
        program = runpy.run_path(str(ROOT / "experiments" / "compare.py"))
        read_comparison(program["variants"](values["variants"]))


def step_of(case: Case) -> Callable[[list[str]], None] | None:
    """What refuses a case; None where the whole program is run."""
    if case.title in SAMPLES | MORE_SAMPLES | ONLY_WHOLE:
        return None
    if case.script == "analyze":
        steps = ((CHECKPOINTS, load_checkpoint), (DATA, load_data), ([*SETTINGS, *KINDS], build_analysis))
        return next(step for cases, step in steps if case in cases)
    return {"visualize": draw, "compare": compare}.get(case.script)


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    """The lines of the table, printed at the end."""
    lines: list[str] = []
    yield lines
    print(f"\n{len(lines)} of {len(CASES)} kinds of bad input", *lines, sep="\n")


@pytest.fixture(autouse=True)
def quiet_afterwards() -> Iterator[None]:
    """What Hydra does to logging ends with the test."""
    with logging_as_before():
        yield


def run_program(case: Case) -> None:
    runpy.run_path(str(ROOT / "experiments" / f"{case.script}.py"), run_name="__main__")


def ended(case: Case, words: list[str]) -> object:
    """The exit code of an experiment, or of the step of it that refuses the case."""
    step = step_of(case)
    run = (
        functools.partial(run_program, case)
        if step is None
        else lambda: configuration.launch(lambda: step(words))
    )
    with pytest.raises(SystemExit) as end:
        run()
    return end.value.code


def parameters() -> Iterator[Any]:
    """The cases, by their titles; a program takes most of a second, so not all of them are run every time."""
    for case in CASES:
        slow = (
            (step_of(case) is None and case.title not in SAMPLES)
            or case.title in TAKES_SECONDS
            or (case in KINDS and not case.title.endswith("of the wrong kind"))
        )
        yield pytest.param(case, id=case.title.replace(" ", "-"), marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize("case", list(parameters()))
def test_bad_input_is_one_line_and_exit_code_2(
    case: Case,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    byte_model_directory: Path,
    table: list[str],
) -> None:
    case.put(tmp_path, byte_model_directory)
    own = [word.partition("=")[0].lstrip("+") for word in case.arguments]
    default = (
        [f"checkpoint={byte_model_directory}", "output_dir=out", *SMALL] if case.script == "analyze" else []
    )
    if any(word in ("dataset=text", "dataset=tokens") for word in case.arguments):
        default = [word for word in default if not word.startswith("dataset.")]
    words = [word for word in default if word.partition("=")[0] not in own] + list(case.arguments)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{case.script}.py", *words])
    capsys.readouterr()
    ends: list[object] = []
    before = held_bytes(CPU)
    peak = peak_bytes(lambda: ends.append(ended(case, words)), CPU)
    out, err = capsys.readouterr()
    table.append(f"{case.title:45} {err.strip()}")
    assert ends == [2], err
    assert before is None or peak is None or peak - before < MOST_BYTES
    assert len(err.strip().splitlines()) == 1, err
    assert err.strip().isprintable()
    assert case.words in err
    assert "Traceback" not in out + err
    assert not (tmp_path / "proof").exists()
    results = [
        json.loads(path.read_text()) for path in tmp_path.glob("o*/result.json") if path.stat().st_size > 9
    ]
    assert all(result["status"] == "failed" for result in results)
    assert not list(tmp_path.glob("out/final_masks*"))
