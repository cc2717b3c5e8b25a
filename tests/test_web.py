"""The pages of runs, as files: what they hold, and that nothing a model or a path is called can act in them."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from web_runs import circuit_drawing, nested_run, scored_masks, scored_run, seeds_run, task_run

from mechint.circuits.drawing import EXAMPLES, PATTERNS, TOKENS
from mechint.reporting.context import Context
from mechint.reporting.report import write_report
from mechint.reporting.templates import environment
from mechint.reporting.web import run_page
from mechint.reporting.web.channels import threshold_of
from mechint.reporting.web.page import ASSETS, bundle
from mechint.results import RunFiles, save_masks
from mechint.results.units import UnitMeaning, UnitMeanings

PROGRAMS = ("run", "comparison", "study", "index")
ATTACKS = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}<!--",
    "'; alert(1); //\u2028</style><svg onload=alert(1)>",
    "javascript:alert(1)",
)


class Read(html.parser.HTMLParser):
    """Elements with their attributes, and the text of scripts, styles and everything else."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {}
        self.open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open = tag
        if tag in ("script", "style"):
            self.inside.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        self.open = ""

    def handle_data(self, data: str) -> None:
        if self.open in ("script", "style"):
            self.inside[self.open][-1] += data
        else:
            self.inside.setdefault("text", []).append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.inside["text"]).split())

    @property
    def data(self) -> dict[str, Any]:
        return dict(json.loads(self.inside["script"][0]))

    def column(self, name: str) -> np.ndarray:
        where = self.data["columns"][name]
        block = base64.b64decode(self.inside["script"][1])
        if where["type"] == "bool":
            packed = np.frombuffer(block, dtype=np.uint8, offset=where["offset"])
            return np.unpackbits(packed, count=where["length"], bitorder="little").astype(bool)
        return np.frombuffer(block, dtype=where["type"], count=where["length"], offset=where["offset"])


def hostile_run(directory: Path, attack: str) -> RunFiles:
    """A run in which every text that comes from outside is an attack."""
    masks = scored_masks(12, name=attack + "{}")
    run = scored_run(
        directory / attack.replace("/", "_"),
        masks,
        checkpoint__source=attack,
        checkpoint__name=attack,
        checkpoint__sha256=attack,
        checkpoint__architecture=attack,
        dataset__name=attack,
        dataset__tokenizer=attack,
        mask__method=attack,
        mask__unit=attack,
        mask__objective=attack,
        config={attack: {attack: [attack]}, "seed": 0},
        notes=[attack],
        versions={attack: attack},
        config_digest=attack,
        finished=attack,
        task={
            "name": attack,
            "prompts": {attack: 1},
            "accuracy": {attack: 0.5},
            "example": {"clean": attack, attack: attack},
        },
        circuit={"ablation": attack, "ablations": [{"ablation": attack}]},
        verdict={"overall": "GO", "gates": [{"gate": attack}]},
    )
    frame = run.channels_frame().sort_values("importance")
    weight, context = {"token": attack, "weight": 1.5}, {"before": attack, "token": attack, "value": -2.0}
    match = {"query": attack, "key": attack, "term": 1.0, "attention": 0.5}
    told: dict[str, dict[str, Any]] = {
        "k": {"keys": [context], "matches": [match], "mean_share": 0.25},
        "v": {"promotes": [weight], "suppresses": [weight], "values": [context]},
    }
    units = []
    for kind, known in told.items():
        most = frame[frame["kind"] == kind].iloc[-1]
        place = {key: int(most[key]) for key in ("layer", "head", "channel")}
        units.append(UnitMeaning(**place, kind=kind, **known))
    run = replace(
        run,
        meanings=UnitMeanings(prompts=1, units=units),
        drawing=circuit_drawing(masks, [attack, attack]).model_copy(update={"notes": [attack]}),
    )
    overrides = run.directory / ".hydra" / "overrides.yaml"
    overrides.parent.mkdir(parents=True)
    overrides.write_text(json.dumps([f"checkpoint={attack}"]))
    return run


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_that_a_run_is_called_acts_in_its_page(tmp_path: Path, attack: str) -> None:
    """The hostile page has the elements and attributes of a harmless one, and shows the attack as text."""
    harmless, hostile = (Read(run_page(hostile_run(tmp_path, text))) for text in ("name", attack))
    shape = [(tag, sorted(attributes)) for tag, attributes in hostile.elements]
    assert shape == [(tag, sorted(attributes)) for tag, attributes in harmless.elements]
    assert not any(name.startswith("on") for _, attributes in hostile.elements for name in attributes)
    assert hostile.data["layers"][0]["name"] == attack + "0"
    assert " ".join(attack.split()) in hostile.text
    key, value = hostile.data["cards"].values()
    assert key["contexts"]["Where the key is large"] == [[attack, attack, -2.0]]
    assert value["tokens"]["Promotes"] == [f"{attack!r} +1.5"]
    assert hostile.data["circuit"]["examples"][0]["tokens"][0] == attack
    assert hostile.inside["script"][2] == harmless.inside["script"][2]


def test_only_the_pages_own_program_and_style_may_run(tmp_path: Path) -> None:
    """The policy forbids everything but the two texts whose hashes it names, and nothing refers to the outside."""
    page = run_page(nested_run(tmp_path))
    read = Read(page)
    policy = next(a["content"] for tag, a in read.elements if tag == "meta" and "http-equiv" in a)
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    nothing = ("default-src", "connect-src", "base-uri", "form-action")
    assert all(rules[name] == "'none'" for name in nothing)
    for name, text in (("script-src", read.inside["script"][2]), ("style-src", read.inside["style"][0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"
    assert set(rules) == {*nothing, "script-src", "style-src"}
    attributes = {name for _, found in read.elements for name in found}
    assert not attributes & {"src", "srcset", "style", "action", "data", "background", "poster"}
    assert all((a["href"] or "").startswith("#") for _, a in read.elements if "href" in a)
    outside = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s'\"]*", page))
    assert outside == {"http://www.w3.org/2000/svg"}  # the name of SVG, which nothing loads
    assert "@import" not in page
    assert "url(" not in page


@pytest.mark.parametrize("make", [nested_run, seeds_run])
def test_the_block_holds_the_tensors(tmp_path: Path, make: Any) -> None:
    """Every column, decoded, is the run's own tensor in the order of its table of channels."""
    run = make(tmp_path)
    read, frame = Read(run_page(run)), run.channels_frame()
    np.testing.assert_array_equal(read.column("importance"), frame["importance"].to_numpy(np.float32))
    np.testing.assert_array_equal(read.column("kept"), frame["kept"].to_numpy())
    assert [layer["name"] for layer in read.data["layers"]] == list(run.masks)
    if run.evidence is not None:
        parts = list(run.evidence.values())
        for name, scale in (("frequency", len(run.result.stability.seeds)), ("necessity", 1)):
            told = torch.cat([getattr(part, name).flatten() for part in parts]).numpy() * scale
            np.testing.assert_allclose(read.column(name), told, rtol=1e-6)


def test_a_loss_stands_at_a_threshold_only_where_exactly_that_mask_was_measured(tmp_path: Path) -> None:
    """Nested masks that are the most important units have a threshold; one with an exchanged unit has none."""
    run = nested_run(tmp_path)
    points = Read(run_page(run)).data["measured"]
    importance = Read(run_page(run)).column("importance")
    assert [point["kept"] for point in points] == [12, 24, 40]
    for point in points:
        assert int((importance >= point["threshold"]).sum()) == point["kept"]
        assert point["loss"] is not None
    kept = importance >= points[0]["threshold"]
    kept[[np.flatnonzero(kept)[0], np.flatnonzero(~kept)[0]]] = False, True
    assert threshold_of(importance, kept) is None
    assert threshold_of(importance, np.zeros_like(kept)) is None
    assert threshold_of(importance, np.ones_like(kept)) == importance.min()
    shutil.rmtree(tmp_path / run.result.nested[0].directory)
    assert Read(run_page(run)).data["measured"][-1]["threshold"] is None


def test_units_of_several_channels_are_numbered(tmp_path: Path) -> None:
    """Where one unit switches a whole head the page gets the number of every channel's unit."""
    masks = scored_masks(0)
    for mask in masks.values():
        for tensor in (mask.k_importance, mask.v_importance):
            tensor[:] = tensor.mean(dim=1, keepdim=True)
    run = scored_run(tmp_path, masks, mask__unit="head", sparsity__total=12)
    unit = Read(run_page(run)).column("unit").reshape(-1, 8)
    assert (unit == unit[:, :1]).all()
    assert len(np.unique(unit)) == 12


def test_a_run_read_again_knows_which_channels_share_a_unit(tmp_path: Path) -> None:
    """Pairs that are rotated together follow from the model; what the run wrote of them is enough for its page."""
    pairs = (
        torch.arange(96).view(12, 2, 4).transpose(1, 2).reshape(-1)
    )  # as a model would tell: any two of a head
    run = replace(scored_run(tmp_path, scored_masks(12), mask__unit="rope_pair"), units=pairs // 2)
    save_masks(run.masks, tmp_path, {})
    run.result.write(tmp_path)
    assert "unit" not in Read(run_page(RunFiles.read(tmp_path))).data["columns"]
    run.export_channels()
    again = RunFiles.read(tmp_path)
    np.testing.assert_array_equal(Read(run_page(again)).column("unit"), (pairs // 2).numpy())
    (tmp_path / "channels.csv").write_text("unit\n1\n")  # of another run
    assert "unit" not in Read(run_page(RunFiles.read(tmp_path))).data["columns"]


def test_the_page_of_a_task_has_its_circuit(tmp_path: Path) -> None:
    """Curve, heads, arrows and attention are those of the files; rows of attention end with the token itself."""
    run = task_run(tmp_path)
    circuit, drawing = Read(run_page(run)).data["circuit"], run.drawing
    assert drawing is not None
    assert circuit["nodes"] == [[node.layer, node.head] for node in drawing.nodes]
    assert circuit["edges"] == [[*edge.source, *edge.target, edge.kind, edge.score] for edge in drawing.edges]
    shown, pattern = circuit["examples"][0]["patterns"][0], drawing.examples[0].patterns[0]
    assert [[part / 10_000 for part in row] for row in shown["masked"]] == [
        row[: number + 1] for number, row in enumerate(pattern.masked)
    ]
    assert [point["kept"] for point in circuit["curve"]] == [0, 5, 40, 96]
    assert Read(run_page(scored_run(tmp_path, scored_masks(12)))).data["circuit"] is None
    foreign = circuit_drawing(scored_masks(40, 5, 4))
    drawn = Read(run_page(replace(run, drawing=foreign))).data["circuit"]["nodes"]
    assert {tuple(node) for node in drawn} <= {(layer, head) for layer in range(3) for head in range(2)}
    assert 0 < len(drawn) < len(foreign.nodes)
    bare = replace(run, drawing=None)
    bare.result.circuit = None
    assert "Which head reads" not in run_page(bare)


def test_what_could_not_be_shown_of_a_circuit_is_on_the_page_and_in_the_report(tmp_path: Path) -> None:
    run = replace(task_run(tmp_path), meanings=UnitMeanings(notes=["a note on the units"]))
    report = write_report(Context(run), []).read_text()
    for text in (Read(run_page(run)).text, report):
        assert "Note: a note on the drawing." in text
        assert "Note: a note on the units." in text


def test_what_is_not_known_is_a_dash(tmp_path: Path) -> None:
    """Numbers that a run lacks are null for the program and a dash for the reader."""
    run = scored_run(
        tmp_path, scored_masks(12), metrics__masked={"loss": math.nan, "kl": None}, faithfulness=math.inf
    )
    read = Read(run_page(run))
    assert read.data["measured"][0]["loss"] is None
    assert "NaN" not in "".join(read.inside["script"][:1])
    assert "—" in read.text
    bare = scored_run(tmp_path, scored_masks(12), metrics={})
    assert "Nothing was measured" in Read(run_page(bare)).text


@pytest.mark.parametrize(
    ("shape", "limit"),
    [((30, 3, 64), 0.8e6), ((30, 6, 64), 0.8e6), pytest.param((64, 12, 131), 4e6, marks=pytest.mark.slow)],
    ids=["11520 channels", "23040 channels", "201216 channels"],
)
def test_the_file_is_small_enough_to_mail(tmp_path: Path, shape: tuple[int, int, int], limit: float) -> None:
    """SmolLM2-135M's channels fit in 0.8 MB, 200,000 in 4 MB, with the columns of several seeds and a circuit."""
    layers, heads, width = shape
    masks = scored_masks(1000, layers, heads, width)
    drawing = circuit_drawing(masks, ["token"] * (TOKENS - 1), EXAMPLES, PATTERNS)
    run = replace(scored_run(tmp_path, masks, task={"name": "ioi"}), drawing=drawing)
    of_seeds = (
        layers * heads * width * 2 * (1 + 4 + 4) * 4 / 3
    )  # frequency, necessity and its error, in base64
    assert len(run_page(run).encode()) + of_seeds < limit


FORBIDDEN = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|Function\(|createContextualFragment|"
    r"fetch\(|XMLHttpRequest|import\("
)


@pytest.mark.parametrize("path", sorted(ASSETS.glob("*.js")), ids=lambda path: path.name)
def test_modules_only_write_text_and_load_nothing(path: Path) -> None:
    """No module turns text into markup or code, or asks a network for anything; each says first what it is for."""
    text = path.read_text(encoding="utf-8")
    allowed = {"index.js": {"fetch("}}.get(path.name, set())  # the index asks the server that it came from
    assert set(FORBIDDEN.findall(text)) <= allowed
    assert text.startswith("// ")
    assert max(map(len, text.splitlines())) <= 120
    assert not re.search(r"[ \t]+$|\t|console\.|\bvar\s|[^=!]==[^=]", text, re.MULTILINE)


@pytest.mark.parametrize("program", PROGRAMS)
def test_modules_are_joined_without_collisions(program: str, tmp_path: Path) -> None:
    """The program parses as one module: no name twice, no import left, every imported name is exported."""
    text = bundle(program)
    assert not re.search(r"^(import|export)\b", text, re.MULTILINE)
    for module in ASSETS.glob("*.js"):
        for names, other in re.findall(
            r"^import \{([^}]*)\} from '\./(\w+)\.js';$", module.read_text(encoding="utf-8"), re.MULTILINE
        ):
            exported = (ASSETS / f"{other}.js").read_text(encoding="utf-8")
            for name in filter(None, (part.strip() for part in names.split(","))):
                assert re.search(rf"^export (function|class|const) {name}\b", exported, re.MULTILINE), (
                    module,
                    name,
                )
    tops = re.findall(r"^(?:function|class|const|let) (\w+)", text, re.MULTILINE)
    assert len(tops) == len(set(tops))
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed, so the program's syntax is checked by the browser tests only")
    path = tmp_path / f"{program}.mjs"
    path.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [node, "--check", str(path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_templates_switch_escaping_off_for_our_own_texts_only() -> None:
    """No template uses `safe`; what is marked as markup is the style, the program, the JSON and the block."""
    for name in environment("mechint.reporting.web").list_templates():
        source = (ASSETS.parent / "templates" / name).read_text(encoding="utf-8")
        assert not re.search(r"\|\s*safe|autoescape", source), name
