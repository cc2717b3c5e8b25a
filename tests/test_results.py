"""The typed content of result.json and the table of channels."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from comparable_runs import make_masks, make_result, make_run, write_run

from mechint.errors import UserError
from mechint.results import Result, RunFiles
from mechint.results.result import SCHEMA_VERSION, FinishingInfo, ModelMetrics, UnreadableResult

KEPT = [(3, 5), (0, 16)]


def test_what_was_written_is_read_again_and_nothing_is_added(tmp_path: Path) -> None:
    content = make_result(make_masks(KEPT)) | {"verdict": {"text": "later versions know this"}}
    result = Result.parse(content)
    assert result.as_json() == content | {"schema_version": SCHEMA_VERSION}
    result.write(tmp_path)
    assert Result.read(tmp_path).as_json() == result.as_json()


def test_sections_that_a_run_has_not_reached_are_absent_from_the_file_and_read_as_defaults() -> None:
    result = Result(status="failed", error="OSError: no space")
    assert result.as_json() == {"status": "failed", "error": "OSError: no space"}
    assert result.metrics.masked.kl is None
    assert not result.measured


def test_nan_and_infinity_are_null_in_the_file(tmp_path: Path) -> None:
    result = Result.parse(make_result(make_masks(KEPT)))
    result.metrics.empty = ModelMetrics(loss=math.nan, perplexity=math.inf, kl=1.0)
    result.write(tmp_path)
    text = (tmp_path / "result.json").read_text()
    assert json.loads(text)["metrics"]["empty"] == {"loss": None, "perplexity": None, "kl": 1.0}
    assert Result.read(tmp_path).metrics.empty.loss is None


@pytest.mark.parametrize("version", [{"schema_version": 1}, {}])
def test_files_of_the_first_version_are_read(version: dict[str, int]) -> None:
    content = make_result(make_masks(KEPT))
    content["finishing"] = {"selection_kl_before": 2.0, "selection_kl_after": 1.5, "exchanged_units": 3}
    del content["schema_version"]
    result = Result.parse(content | version)
    assert result.schema_version == SCHEMA_VERSION
    assert result.finishing == FinishingInfo(before=2.0, after=1.5, exchanged_units=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": SCHEMA_VERSION + 1}, "use a newer mechint"),
        ({"schema_version": "1"}, "schema version '1'"),
        ({"status": "sleeping"}, "^status: "),
        ({"layers": [{"index": 0}]}, "^layers.0.name: "),
        ({"metrics": {"masked": {"loss": "low"}}}, "^metrics.masked.loss: "),
        ({"sparsity": None}, "^sparsity: "),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnreadableResult, match=message) as caught:
        Result.parse(make_result(make_masks(KEPT)) | changes)
    assert "\n" not in str(caught.value)


def test_the_table_of_channels_holds_every_channel_once(tmp_path: Path) -> None:
    run = RunFiles.read(write_run(tmp_path, KEPT, seed=3))
    table = run.channels_frame()
    assert list(table) == [
        *("run", "seed", "layer", "layer_name", "kind", "head", "channel", "unit", "kept", "importance")
    ]
    assert set(table["run"]) == {str(tmp_path)}
    assert set(table["seed"]) == {3}
    kept = table.groupby(["layer", "kind"])["kept"].sum()
    assert {key: int(value) for key, value in kept.items()} == {
        (0, "k"): 3,
        (0, "v"): 5,
        (1, "k"): 0,
        (1, "v"): 16,
    }
    mask = run.masks["model.layers.1.self_attn"]
    row = table[
        (table["layer"] == 1) & (table["kind"] == "v") & (table["head"] == 1) & (table["channel"] == 5)
    ]
    assert row["importance"].item() == mask.v_importance[1, 5]
    assert list(table["unit"]) == list(range(len(table)))


def test_the_kept_channels_of_a_head_can_be_read() -> None:
    run = make_run(KEPT)
    found = run.kept_channels(1, 1)
    assert found == {"k": [], "v": list(range(8))}
    for kind in ("k", "v"):
        mask = getattr(run.masks["model.layers.0.self_attn"], f"{kind}_mask")
        assert run.kept_channels(0, 0)[kind] == [number for number, kept in enumerate(mask[0]) if kept]  # type: ignore[index]
    for place, message in (
        ((2, 0), "no attention layer 2"),
        ((0, 2), "heads are 0 to 1"),
        ((0, -1), "no KV head"),
    ):
        with pytest.raises(UserError, match=message):
            run.kept_channels(*place)


@pytest.mark.parametrize(
    ("unit", "tied", "units"), [("channel", True, 32), ("head", False, 8), ("head", True, 4)]
)
def test_channels_are_told_which_unit_switches_them(unit: str, tied: bool, units: int) -> None:
    run = make_run(KEPT, mask__unit=unit, mask__tie_kv=tied)
    table = run.channels_frame()
    assert sorted(set(table["unit"])) == list(range(units))
    together = table.groupby("unit")[["layer", "head"]].nunique()
    assert (together == 1).all(axis=None)


def test_a_unit_that_the_files_do_not_tell_is_missing() -> None:
    assert make_run(KEPT, mask__unit="rope_pair").channels_frame()["unit"].isna().all()


def test_the_table_is_exported_as_csv(tmp_path: Path) -> None:
    run = RunFiles.read(write_run(tmp_path, KEPT))
    path = run.export_channels()
    assert path == tmp_path / "channels.csv"
    read, table = pd.read_csv(path), run.channels_frame()
    assert list(read["kept"]) == list(table["kept"])
    assert read["importance"].to_numpy() == pytest.approx(table["importance"].to_numpy())


def test_the_repr_of_a_run_is_short_and_holds_no_tensor(tmp_path: Path) -> None:
    text = repr(RunFiles.read(write_run(tmp_path, KEPT)))
    assert str(tmp_path) in text
    assert "kept=24 of 64 channels" in text
    assert "tensor" not in text
    assert len(text) < 200 + len(str(tmp_path))


def test_no_change_in_files_of_the_second_version_was_no_test_of_being_inert() -> None:
    changes = {"mean": 0.0, "values": [0.0]}
    inertness = {"sizes": [{"units": 1, "added": changes, "removed": changes}]}
    for verdict, expected in (("none", "unclear"), ("lowers", "lowers")):
        stability = {
            "seeds": [0, 1],
            "single": {"kl": [1.0], "loss": [1.0]},
            "consensus": {"kl": 1.0, "loss": 1.0},
            "inertness": {**inertness, "verdict": verdict},
            "null": {"kl": 0.5, "kl_recovered": 0.9},
        }
        found = Result.parse(make_result(make_masks(KEPT)) | {"schema_version": 2, "stability": stability})
        assert found.stability is not None
        assert found.stability.inertness is not None
        assert found.stability.inertness.verdict == expected
        assert found.stability.inertness.equivalent is None
        assert found.stability.null is not None
        assert (found.stability.null.informative, found.stability.null.permutations) == (None, [])
