"""Tasks: prompts in tokens, their sides, their answers, and what the dense model makes of them."""

from __future__ import annotations

import json
import random
import re
import sys
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import tiny_model
from parts import ABLATIONS, TASKS, named
from torch import Tensor

from mechint.analysis.describing import leakage_info
from mechint.analysis.tasks import halved_note, solved
from mechint.data import TokenData
from mechint.data.batch import NO_TOKEN, Batch
from mechint.data.byte_tokenizer import byte_tokenizer
from mechint.data.tasks import (
    Docstring,
    GenderedPronoun,
    GreaterThan,
    IndirectObject,
    InductionTask,
    PromptPairs,
    SubjectVerbAgreement,
)
from mechint.data.tasks.encoding import Encoded, Lexicon, Prompt, PromptError, encode, make_batch
from mechint.data.tasks.greater_than import CENTURIES
from mechint.data.tasks.induction import PERIODS
from mechint.data.tasks.task import Side, TaskDataset, TextTask
from mechint.data.tasks.words import EVENTS, IDENTIFIERS, MEN, NOUNS, PLACES, THINGS, WOMEN
from mechint.data.token_data import digest_of_prompts
from mechint.errors import UserError
from mechint.masking import (
    CounterfactualAblation,
    MaskedModel,
)
from mechint.metrics import ACCURACY, KL, LOGIT_DIFF, NLL, Evaluator, KlDivergence

BYTES = byte_tokenizer()
SMALL = {"calibration_prompts": 24, "evaluation_prompts": 16, "paraphrase_prompts": 8}


def load(task: TaskDataset, tokenizer: Any = BYTES, vocab_size: int = 256, seed: int = 0) -> TokenData:
    """A task's prompts, by default in bytes."""
    return task.load(tokenizer, "the tokenizer", vocab_size, 512, seed)


def sides(data: TokenData) -> dict[str, Batch]:
    """All prompts."""
    assert data.task is not None
    assert data.task.paraphrases is not None
    return {
        "calibration": data.calibration,
        "evaluation": data.evaluation,
        "paraphrase": data.task.paraphrases,
    }


def asked(batch: Batch) -> tuple[Tensor, Tensor]:
    """Right and wrong answers at the position that counts, [B, A]."""
    assert batch.answers is not None
    assert batch.foils is not None
    assert batch.counted is not None
    right, wrong = (part if part.ndim == 3 else part.unsqueeze(-1) for part in (batch.answers, batch.foils))
    return right[batch.counted], wrong[batch.counted]


def texts(batch: Batch) -> list[str]:
    """The clean prompts as text."""
    there = (
        torch.ones_like(batch.tokens, dtype=torch.bool)
        if batch.attention_mask is None
        else batch.attention_mask
    )
    return [bytes(row[mask].tolist()).decode() for row, mask in zip(batch.tokens, there, strict=True)]


def families_of(batch: Batch) -> list[int]:
    """The family of every prompt."""
    assert batch.families is not None
    return list(map(int, batch.families))


@pytest.mark.parametrize("kind", TASKS, ids=named)
def test_every_task_gives_prompts_of_equal_length_with_answers(kind: type[TaskDataset]) -> None:
    data = load(kind(**SMALL))
    assert (data.name, data.calibration_tokens, data.evaluation_tokens) == (kind.name, 24, 16)
    for batch in sides(data).values():
        assert batch.paired is not None
        assert batch.paired.shape == batch.tokens.shape
        assert batch.positions.tolist() == [1] * len(batch)
        right, wrong = asked(batch)
        for row in range(len(batch)):
            own, other = set(right[row].tolist()) - {NO_TOKEN}, set(wrong[row].tolist()) - {NO_TOKEN}
            assert own
            assert other
            assert not own & other
        assert not torch.equal(batch.paired, batch.tokens)
        if batch.attention_mask is not None:  # what is padding in one is padding in the other
            assert (batch.paired[~batch.attention_mask] == 0).all()


@pytest.mark.parametrize("kind", TASKS, ids=named)
def test_sides_share_no_prompt_and_the_seed_draws_calibration_prompts_alone(kind: type[TaskDataset]) -> None:
    data, same, other = (load(kind(**SMALL), seed=seed) for seed in (0, 0, 1))
    assert data.evaluation_digest == same.evaluation_digest == other.evaluation_digest
    assert texts(data.calibration) == texts(same.calibration) != texts(other.calibration)
    found = {side: set(texts(batch)) for side, batch in sides(data).items()}
    assert not found["calibration"] & (found["evaluation"] | found["paraphrase"])
    assert not found["evaluation"] & found["paraphrase"]


def test_names_and_templates_of_one_side_are_on_no_other() -> None:
    data = load(IndirectObject(calibration_prompts=96, evaluation_prompts=64, paraphrase_prompts=32))
    names = {}
    for side, batch in sides(data).items():
        words = [word.strip(",.") for text in texts(batch) for word in text.split()]
        names[side] = {word for word in words if word[0].isupper() and len(word) > 2} - {
            *("When", "Then", "Friends", "After", "While", "The", "One")
        }
        assert len(names[side]) > 5
    assert not names["calibration"] & (names["evaluation"] | names["paraphrase"])
    starts = {side: {text.split()[0] for text in texts(batch)} for side, batch in sides(data).items()}
    assert starts["paraphrase"] == {"The", "One"}
    assert "While" not in starts["calibration"]


@pytest.mark.parametrize(
    ("kind", "lists"),
    [
        (IndirectObject, [(*MEN, *WOMEN), PLACES, THINGS]),
        (GenderedPronoun, [(*MEN, *WOMEN)]),
        (GreaterThan, [EVENTS, tuple(map(str, CENTURIES))]),
        (SubjectVerbAgreement, [(*NOUNS, *NOUNS.values())]),
        (Docstring, [IDENTIFIERS]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_no_task_shows_evaluation_prompts_what_it_was_calibrated_on(
    kind: type[TaskDataset], lists: list[tuple[str, ...]]
) -> None:
    templates = [template for side in sys.modules[kind.__module__].TEMPLATES.values() for template in side]
    assert len(set(templates)) == len(templates)
    data = load(kind(**SMALL))
    for vocabulary in lists:
        found = {}
        for side, batch in sides(data).items():
            paired = replace(batch, tokens=batch.paired)
            shown = " ".join(texts(batch) + texts(paired))
            # a century is what a year begins with, everything else a word of its own
            ends = r"(?=\d\d\b)" if vocabulary[0].isdigit() else r"\b"
            found[side] = {word for word in vocabulary if re.search(rf"\b{word}{ends}", shown)}
            assert len(found[side]) > 1, side
        assert not found["calibration"] & (found["evaluation"] | found["paraphrase"])


class _WholeWords(Lexicon):
    """A tokenizer for which every word is one token, as large ones have it."""

    def _ids(self, word: str) -> list[int]:
        return [zlib.crc32(word.encode())]


@pytest.mark.parametrize("side", ["calibration", "evaluation", "paraphrase"])
@pytest.mark.parametrize("kind", [IndirectObject, GenderedPronoun], ids=lambda kind: kind.name)
def test_men_and_women_are_named_on_every_side(kind: type[TextTask], side: Side) -> None:
    """Else a mask learned on men's names is measured on women's."""
    drawn = islice(kind().draw(_WholeWords(BYTES), side, random.Random(0)), 400)
    words = {word.strip(",.") for prompt in drawn for word in prompt.clean.split()}
    men, women = len(words & set(MEN)), len(words & set(WOMEN))
    assert 0.4 < men / (men + women) < 0.6


def test_the_noun_in_between_says_nothing_about_the_verb() -> None:
    words = {form: number for pair in NOUNS.items() for number, form in enumerate(pair)}
    drawn = islice(SubjectVerbAgreement().draw(_WholeWords(BYTES), "calibration", random.Random(0)), 400)
    seen = Counter(tuple(words[word] for word in prompt.clean.split() if word in words) for prompt in drawn)
    assert {(0, 0), (0, 1), (1, 0), (1, 1)} == set(seen)
    assert min(seen.values()) > 70


def test_induction_shows_other_tokens_and_lengths_on_every_side() -> None:
    data = load(InductionTask(**SMALL), tokenizer=None, vocab_size=80)
    found = {side: set(batch.tokens[_there(batch)].tolist()) for side, batch in sides(data).items()}
    assert not found["calibration"] & (found["evaluation"] | found["paraphrase"])
    assert len({period for side in PERIODS.values() for period in side}) == sum(map(len, PERIODS.values()))


def _there(batch: Batch) -> Tensor:
    everywhere = torch.ones_like(batch.tokens, dtype=torch.bool)
    return everywhere if batch.attention_mask is None else batch.attention_mask


def test_the_right_name_is_the_one_that_is_named_once() -> None:
    data = load(IndirectObject(**SMALL))
    right, wrong = asked(data.evaluation)
    for text, own, other in zip(texts(data.evaluation), right.flatten(), wrong.flatten(), strict=True):
        shared = text.rsplit("to", 1)[1]  # what both names begin with
        words = [word.strip(",.") for word in text[: -len(shared) or None].split()]
        twice = {word for word in words if word[0].isupper() and words.count(word) == 2}
        (subject,) = twice
        assert f" {subject}".startswith(shared + chr(other))
        indirect = [w for w in words if f" {w}".startswith(shared + chr(own)) and words.count(w) == 1]
        assert indirect


@pytest.mark.parametrize("corruption", ["subject", "flip"])
def test_the_paired_prompt_of_ioi_can_differ_in_the_subject_alone(corruption: str) -> None:
    batch = load(IndirectObject(**SMALL, corruption=corruption)).evaluation
    paired = texts(replace(batch, tokens=batch.paired))
    for clean, other in zip(texts(batch), paired, strict=True):
        words, changed = clean.split(), other.split()
        different = [pair for pair in zip(words, changed, strict=True) if pair[0] != pair[1]]
        assert len(different) == 1
        own, new = (word.strip(",.") for word in different[0])
        counts = [word.strip(",.") for word in words].count
        assert (counts(own), counts(new)) == (2, 1 if corruption == "flip" else 0)


def test_years_that_begin_with_the_same_digit_are_neither_right_nor_wrong() -> None:
    batch = load(GreaterThan(**SMALL)).evaluation
    right, wrong = asked(batch)
    for text, own, other in zip(texts(batch), right.tolist(), wrong.tolist(), strict=True):
        year = next(word for word in text.split() if len(word) == 4 and word.isdigit())
        assert {chr(t) for t in own if t != NO_TOKEN} == set("0123456789"[int(year[2]) + 1 :])
        assert {chr(t) for t in other if t != NO_TOKEN} == set(
            "0123456789"[: int(year[2]) + (year[3] == "9")]
        )


def test_induction_needs_no_tokenizer_and_asks_for_what_came_next() -> None:
    batch = load(InductionTask(**SMALL), tokenizer=None, vocab_size=80).evaluation
    right, wrong = asked(batch)
    mask = batch.attention_mask
    assert mask is not None
    assert batch.paired is not None
    for row in range(len(batch)):
        clean, paired = batch.tokens[row][mask[row]].tolist(), batch.paired[row][mask[row]].tolist()
        last, first = clean[-1], clean.index(clean[-1])
        assert clean[first + 1] == right[row].item()
        assert paired[paired.index(last) + 1] == wrong[row].item()
        assert sorted(clean) == sorted(paired)


@pytest.mark.slow
def test_a_gpt2_tokenizer_gives_every_task_single_tokens(shared_data: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "gpt2")
    for kind in TASKS:
        data = load(kind(**SMALL), tokenizer, 50_257)
        assert len(data.evaluation) == 16, kind.name
    example = load(IndirectObject(**SMALL), tokenizer, 50_257).task.example  # type: ignore[union-attr]
    assert example["right"].startswith(" ")
    assert example["right"].strip() in example["clean"]


# --- encoding


def test_prompts_that_cannot_be_used_say_why() -> None:
    for prompt, reason in (
        (Prompt("ab", "abc", ("x",), ("y",)), "clean has 2 tokens and corrupted 3"),
        (Prompt("ab", "cd", ("xy",), ("xy",)), "one answer begins with another"),
        (Prompt("ab", "cd", ("x", "y"), ("x", "y")), "begin with the same token"),
        (Prompt("ab", "cd", ("",), ("y",)), "an answer has no tokens"),
        (Prompt("ab", "ab", ("x",), ("y",)), "clean and corrupted are the same"),
    ):
        with pytest.raises(PromptError, match=reason):
            encode(prompt, BYTES)


def test_what_all_answers_begin_with_becomes_part_of_the_prompts() -> None:
    found = encode(Prompt("to", "at", (" Mary",), (" Mark",)), BYTES, beginning=(7,))
    assert bytes(found.clean[1:]).decode() == "to Mar"
    assert bytes(found.corrupted[1:]).decode() == "at Mar"
    assert (found.clean[0], chr(found.right[0]), chr(found.wrong[0])) == (7, "y", "k")


def test_words_alike_have_as_many_tokens_in_every_form() -> None:
    words = Lexicon(BYTES)
    assert words.alike(["cat", "mouse", "dog", "ox"]) == ["cat", "dog"]
    assert words.forms_alike({"cat": "cot", "ox": "oxen", "mouse": "moose"}) == [
        ("cat", "cot"),
        ("mouse", "moose"),
    ]


def encoded_prompts() -> list[Encoded]:
    """Prompts of several lengths, with different numbers of answers."""
    draw = random.Random(0)
    prompts = []
    for length, right, wrong in ((5, 1, 1), (12, 2, 1), (8, 1, 3), (12, 1, 2)):
        clean, corrupted = ([draw.randrange(3, 97) for _ in range(length)] for _ in range(2))
        answers = draw.sample(range(3, 97), right + wrong)
        prompts.append(
            Encoded(tuple(clean), tuple(corrupted), tuple(answers[:right]), tuple(answers[right:]))
        )
    return prompts


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "ablation",
    ABLATIONS,
    ids=named,
)
def test_padding_never_leaks_into_tasks(name: str, ablation: Any) -> None:
    masked = MaskedModel(tiny_model(name))
    prompts, metrics = encoded_prompts(), [LOGIT_DIFF, ACCURACY, KL, NLL, KlDivergence(positions="all")]
    keep = torch.rand(masked.space.num_channels, generator=torch.Generator().manual_seed(1)) > 0.5
    found = []
    for side in ("left", "right"):
        batch = make_batch(prompts, side)
        fitted = ablation.fit(masked, batch, at_once=3)
        found.append(Evaluator(masked, batch, fitted, at_once=4)([None, keep], metrics))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=2e-5)
    fitted = ablation.fit(masked, make_batch(prompts), at_once=2)
    for row, prompt in enumerate(prompts):
        alone = Evaluator(masked, make_batch([prompt]), fitted)([None, keep], metrics)
        torch.testing.assert_close(alone[..., 0], found[1][..., row], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_gates_learn_the_same_from_prompts_padded_on_either_side(name: str) -> None:
    masked = MaskedModel(tiny_model(name))
    gates = torch.rand(masked.space.num_channels, generator=torch.Generator().manual_seed(1))
    for metric in (LOGIT_DIFF, KL):
        found = []
        for side in ("left", "right"):
            batch = make_batch(encoded_prompts(), side)
            fitted = CounterfactualAblation().fit(masked, batch, at_once=3)
            found.append(Evaluator(masked, batch, fitted, at_once=4).gradients(gates, metric))
        assert found[0].abs().max() > 1e-4
        torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=2e-6)


# --- files of pairs


def pairs_file(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """A JSONL file."""
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def some_pairs(count: int = 60) -> list[dict[str, str]]:
    """Prompts of three letters, each with its own answers."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [
        {
            "clean": f"{letters[n % 26]}{letters[n // 26]}c",
            "corrupted": f"{letters[n // 26]}{letters[n % 26]}d",
            "correct": letters[(n + 1) % 26],
            "incorrect": letters[(n + 2) % 26],
        }
        for n in range(count)
    ]


def test_paraphrases_begin_with_the_first_few_whatever_was_loaded_before(tmp_path: Path) -> None:
    """Jobs of a sweep share what one of them has loaded; each has a dataset of its own."""
    others = [
        row | {"clean": row["clean"].upper(), "corrupted": row["corrupted"].upper()} for row in some_pairs()
    ]
    files = {
        "path": pairs_file(tmp_path / "pairs.jsonl", some_pairs()),
        "paraphrase_path": pairs_file(tmp_path / "others.jsonl", others),
    }
    for make in (*(partial(kind, **SMALL) for kind in TASKS), partial(PromptPairs, **files)):
        loaded, fresh = make(), make()
        task = load(loaded).task
        assert task is not None
        assert task.paraphrases is not None
        for dataset in (loaded, loaded, fresh):
            found = dataset.paraphrases(BYTES, 256, 512, 12)
            assert found is not None
            few = min(len(found), len(task.paraphrases))
            assert few >= 8
            assert texts(found)[:few] == texts(task.paraphrases)[:few]


def test_pairs_come_from_jsonl_and_csv_alike(tmp_path: Path) -> None:
    import pandas as pd

    rows = some_pairs()
    lines = PromptPairs(path=pairs_file(tmp_path / "pairs.jsonl", rows))
    pd.DataFrame(rows).rename(columns={"clean": "prompt"}).to_csv(tmp_path / "pairs.csv", index=False)
    table = PromptPairs(path=str(tmp_path / "pairs.csv"), columns={"clean": "prompt"})
    one, two = load(lines), load(table)
    assert one.name == two.name == "pairs-pairs"
    assert texts(one.evaluation) == texts(two.evaluation)
    assert len(one.evaluation) + len(one.calibration) == 60
    assert not set(texts(one.evaluation)) & set(texts(one.calibration))
    assert one.task is not None
    assert one.task.paraphrases is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corrupted": "longer"}, "clean has 3 tokens and corrupted 6.*'aac'.*'longer'"),
        ({"correct": ""}, "no right or no wrong answer: 'aac'"),
        ({"correct": 7}, "line 1 of .*pairs.jsonl: 'correct' is 7, and it must be text"),
        ({"correct": ["x", ["y"]]}, "line 1 of .*: 'correct' is .*, and it must be text or a list of texts"),
        ({"incorrect": None}, "line 1 of .*: 'incorrect' is null"),
        ({"clean": "a\ud800"}, "line 1 of .*: 'clean' holds half a character"),
        ({"clean": 70}, "line 1 of .*: 'clean' is 70, and it must be text"),
        ({"corrupted": {"text": "abc"}}, "line 1 of .*: 'corrupted' is .*, and it must be text"),
        ({"corrupted": "aac"}, "line 1 of .*: clean and corrupted are the same, 'aac'"),
        (
            {"correct": "x|y", "incorrect": "y"},
            "line 1 of .*: 'y' is both a right and a wrong answer: clean 'aac'",
        ),
    ],
)
def test_a_pair_that_cannot_be_used_is_shown(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    rows = some_pairs()
    rows[0] |= change
    with pytest.raises(UserError, match=message):
        load(PromptPairs(path=pairs_file(tmp_path / "pairs.jsonl", rows)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give dataset.path"),
        ({"path": "missing.csv"}, "there is no file missing.csv"),
        ({"path": "README.md"}, "has no column 'clean'|cannot be read"),
        ({"path": "x.csv", "evaluation_prompts": 3}, "at least 8"),
        ({"path": "x.csv", "needed_accuracy": 2}, "needed_accuracy"),
        (
            {"columns": {"cleen": "x"}},
            "'cleen', which is not known; use one of clean, corrupted, correct, incorrect",
        ),
        ({"columns": ["clean"]}, "must be names"),
    ],
)
def test_impossible_settings_of_pairs_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(PromptPairs(**settings))


def test_values_of_pairs_are_taken_as_they_are(tmp_path: Path) -> None:
    rows = [
        {"clean": " 07", "corrupted": "1.0", "correct": [" 1", "2|3"], "incorrect": "2020-01-01|NA"},
        {"clean": "\u2028a", "corrupted": "null", "correct": "nan", "incorrect": "True"},
    ]
    expected = [
        Prompt(" 07", "1.0", (" 1", "2|3"), ("2020-01-01", "NA")),
        Prompt("\u2028a", "null", ("nan",), ("True",)),
    ]
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    for name, text in {
        "a.jsonl": lines,
        "a.json": json.dumps(rows),
        "b.json": lines,
        "b.jsonl": "\ufeff" + lines,
    }.items():
        (tmp_path / name).write_text(text)
        assert PromptPairs()._read(str(tmp_path / name)) == expected
    (tmp_path / "a.csv").write_text('\ufeff,clean,corrupted,correct,incorrect\n\n0," 07",1.0," 1|2, 3",NA\n')
    assert PromptPairs()._read(str(tmp_path / "a.csv")) == [Prompt(" 07", "1.0", (" 1", "2, 3"), ("NA",))]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.jsonl",
            '{"clean": "a", "corrupted": "b", "label": 7}\n{"clean": "a", "label": "01"}',
            "line 2 of .*there is no 'corrupted'",
        ),
        ("a.jsonl", '{"clean": "a"}\n{"clean" "a"}', "line 2 of .* is not JSON"),
        ("a.jsonl", '{"clean": "a", "corrupted": "b", "correct": "c"}', "has no column 'incorrect'"),
        ("a.json", '[{"clean": "a", "corrupted": "b"}, 3]', "row 2 of .* is 3, and it must be a JSON object"),
        (
            "a.csv",
            "clean,corrupted,correct,incorrect\na,b,c,d\na,x,b,c,d\n",
            "line 3 of .* has 5 fields, and .* 4",
        ),
        ("a.csv", "clean,corrupted,correct,incorrect\na,b,c\n", "line 2 of .*'incorrect'"),
        ("a.csv", "clean,corrupted,clean\na,b,c\n", "has several columns 'clean'"),
        ("a.csv", "clean,corrupted\n", "has no prompts"),
        ("a.csv", "", "has no prompts"),
        ("a.csv", b"clean,corrupted\n\xff,b\n", "cannot be read as CSV or JSONL"),
    ],
)
def test_files_of_pairs_that_cannot_be_read_say_where(
    tmp_path: Path, name: str, text: str | bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        load(PromptPairs(path=str(tmp_path / name)))


def test_a_named_column_must_be_there(tmp_path: Path) -> None:
    path = pairs_file(tmp_path / "pairs.jsonl", some_pairs())
    with pytest.raises(UserError, match="has no column 'answer', but clean, corrupted, correct, incorrect"):
        load(PromptPairs(path=path, columns={"correct": "answer"}))


@pytest.mark.parametrize("key", ["correct", "incorrect"])
def test_other_answers_are_other_evaluation_data(tmp_path: Path, key: str) -> None:
    rows = some_pairs()
    one, same = (load(PromptPairs(path=pairs_file(tmp_path / f"{n}.jsonl", rows))) for n in range(2))
    for row in rows:
        row[key] = row[key].upper()
    other = load(PromptPairs(path=pairs_file(tmp_path / "2.jsonl", rows)))
    assert texts(one.evaluation) == texts(other.evaluation)
    assert one.evaluation_digest == same.evaluation_digest != other.evaluation_digest


def test_the_digest_of_prompts_is_of_everything_in_them() -> None:
    batch = make_batch(encoded_prompts())
    digests = {digest_of_prompts(batch), digest_of_prompts(replace(batch, attention_mask=None))}
    for name in ("tokens", "answers", "foils", "paired", "counted", "attention_mask"):
        part = getattr(batch, name).clone()
        part.view(-1)[-1] = ~part.view(-1)[-1] if part.dtype == torch.bool else part.view(-1)[-1] + 1
        digests.add(digest_of_prompts(replace(batch, **{name: part})))
    assert len(digests) == 8
    assert digest_of_prompts(batch[:]) in digests


def test_evaluation_prompts_that_are_calibration_prompts_are_refused(tmp_path: Path) -> None:
    rows = some_pairs()
    path = pairs_file(tmp_path / "pairs.jsonl", rows)
    half = [
        row if n < 30 else row | {"clean": row["clean"] + "e", "corrupted": row["corrupted"] + "f"}
        for n, row in enumerate(rows)
    ]
    swapped = [row | {"clean": row["corrupted"], "corrupted": row["clean"]} for row in half]
    for other, share in ((rows, "100.00%"), (half, "50.00%"), (swapped, "50.00%")):
        file = pairs_file(tmp_path / "other.jsonl", other)
        with pytest.raises(
            UserError, match=rf"{share} of the evaluation prompts.*dataset.allow_overlap=true"
        ):
            load(PromptPairs(path=path, evaluation_path=file))
        with pytest.raises(UserError, match=r"of the paraphrase prompts.*are calibration prompts as well"):
            load(PromptPairs(path=path, paraphrase_path=file))
        data = load(PromptPairs(path=path, evaluation_path=file, allow_overlap=True))
        assert share in data.notes[-1]
        assert data.task is not None
        assert data.task.shared_prompts == float(share[:-1]) / 100
        info = leakage_info(data)
        assert info is not None
        assert info.shared_prompts == data.task.shared_prompts
    clear = load(PromptPairs(path=path))
    assert leakage_info(clear).as_json() == {"shared_prompts": 0.0}  # type: ignore[union-attr]
    assert not any("overlap" in note for note in clear.notes)


@pytest.mark.parametrize("allow_overlap", [False, True])
def test_both_directions_of_a_pair_are_on_one_side(tmp_path: Path, allow_overlap: bool) -> None:
    rows = some_pairs()
    rows += [
        {
            "clean": row["corrupted"],
            "corrupted": row["clean"],
            "correct": row["incorrect"],
            "incorrect": row["correct"],
        }
        for row in rows
    ]
    data = load(PromptPairs(path=pairs_file(tmp_path / "pairs.jsonl", rows), allow_overlap=allow_overlap))
    assert len(data.calibration) + len(data.evaluation) == 120
    assert not set(texts(data.calibration)) & set(texts(data.evaluation))


def test_rows_that_share_a_prompt_are_on_one_side(tmp_path: Path) -> None:
    rows = [row | {"corrupted": f"{row['clean'][0]}.."} for row in some_pairs(104)]
    data = load(PromptPairs(path=pairs_file(tmp_path / "pairs.jsonl", rows)))
    first = [{text[0] for text in texts(batch)} for batch in (data.calibration, data.evaluation)]
    assert len(first[0] | first[1]) == 26
    assert not first[0] & first[1]
    one = [row | {"corrupted": "..."} for row in rows]
    path = pairs_file(tmp_path / "one.jsonl", one)
    with pytest.raises(UserError, match=r"share so many prompts.*dataset.allow_overlap=true"):
        load(PromptPairs(path=path))
    assert "100.00%" in load(PromptPairs(path=path, allow_overlap=True)).notes[-1]


def test_rows_that_repeat_another_one_are_left_out(tmp_path: Path) -> None:
    rows = some_pairs()
    once = load(PromptPairs(path=pairs_file(tmp_path / "pairs.jsonl", rows)))
    again = load(PromptPairs(path=pairs_file(tmp_path / "pairs.jsonl", rows + rows[:7])))
    assert again.evaluation_digest == once.evaluation_digest
    assert len(again.calibration) == len(once.calibration)
    assert re.search("7 of 67 rows of .*pairs.jsonl repeat another one and are left out", again.notes[-1])


def sorted_tokens(tokenizer: Any, years: range) -> list[str]:
    """The last two digits of years in the order of their tokens."""
    words = [f"{year:02d}" for year in years]
    return sorted(words, key=lambda word: tokenizer(word).input_ids[0])


@pytest.mark.parametrize("name", ["eapig_ioi_llama", "eapig_greater_than"])
def test_files_of_eap_ig_are_read_as_they_are(shared_data: Path, name: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "gpt2")
    path = shared_data / "prompts" / f"{name}.csv"
    data = load(PromptPairs(path=str(path), **SMALL), tokenizer, 50_257)
    assert len(data.evaluation) == 16
    assert data.task is not None
    example, (right, wrong) = data.task.example, asked(data.evaluation)
    if name == "eapig_ioi_llama":
        assert example["clean"].split().count(example["wrong"].strip()) == 2
        assert example["clean"].split().count(example["right"].strip()) == 1
    else:
        year = int(example["clean"].split()[6][2:])
        assert example["right"].split(" | ") == sorted_tokens(tokenizer, range(year + 1, 100))
    assert right.shape[0] == wrong.shape[0] == 16


# --- what the dense model makes of them


def test_prompts_that_the_dense_model_gets_wrong_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load(InductionTask(**SMALL))
    masked = MaskedModel(tiny_model("llama", vocab_size=256, max_position_embeddings=128))
    truth = {
        len(batch): Evaluator(masked, batch)([None], [ACCURACY])[0, 0] > 0.5 for batch in sides(data).values()
    }
    kept = truth[16]
    assert 0 < int(kept.sum()) < 16
    monkeypatch.setattr("mechint.analysis.tasks.FEWEST", 2)
    found = solved(replace(data, task=replace(data.task, needed_accuracy=0.0)), masked)  # type: ignore[type-var]
    assert texts(found.evaluation) == [t for t, k in zip(texts(data.evaluation), kept, strict=True) if k]
    assert found.evaluation_digest != data.evaluation_digest
    assert found.task is not None
    assert found.task.accuracy is not None
    assert found.task.left_out is not None
    assert found.task.accuracy["evaluation"] == kept.double().mean().item()
    assert found.task.left_out["calibration"] == int((~truth[24]).sum())
    assert "16 on the evaluation side" in found.notes[-1]
    again = Evaluator(masked, found.evaluation)([None], [ACCURACY])
    assert again.min() == 1


@pytest.mark.parametrize("kind", [GenderedPronoun, IndirectObject])
@pytest.mark.parametrize("wanted", [8, 12, 16])
def test_both_answers_of_every_pair_are_among_some_of_the_prompts(kind: type[TextTask], wanted: int) -> None:
    """An even stride takes one half of every pair: only men, or only the first of two names."""
    batch = load(kind(calibration_prompts=24, evaluation_prompts=32, paraphrase_prompts=0)).evaluation
    chosen = batch[batch.some(wanted)]
    assert len(chosen) == wanted - wanted % 2
    assert set(Counter(families_of(chosen)).values()) == {2}
    if kind is GenderedPronoun:
        right, _ = asked(chosen)
        assert set(Counter(right.flatten().tolist()).values()) == {wanted // 2}


def test_families_are_prompts_that_are_drawn_together_or_share_a_text(tmp_path: Path) -> None:
    both = load(IndirectObject(**SMALL)).evaluation
    assert families_of(both) == [number // 2 for number in range(len(both))]
    for task in (InductionTask(**SMALL), GreaterThan(**SMALL)):
        alone = families_of(load(task).evaluation)
        assert len(set(alone)) == len(alone)
    rows = [
        {
            "clean": f"{one}{number:02d}",
            "corrupted": f"{other}{number:02d}",
            "correct": " x",
            "incorrect": " y",
        }
        for number in range(40)
        for one, other in ("ab", "ba")
    ]
    found = load(PromptPairs(path=pairs_file(tmp_path / "pairs.jsonl", rows))).evaluation
    numbers = [text[1:] for text in texts(found)]
    both_names = set(zip(numbers, families_of(found), strict=True))
    assert len(both_names) == len(set(numbers)) == len(set(families_of(found))) == len(numbers) // 2


def test_families_of_which_a_part_is_left_are_told() -> None:
    def of(*families: int) -> Batch:
        return Batch(torch.zeros(len(families), 1, dtype=torch.long), families=torch.tensor(families))

    whole = of(*(number // 2 for number in range(20)), 99)
    assert not halved_note({"evaluation": whole}, {"evaluation": whole[1:]})  # one of ten
    (note,) = halved_note({"evaluation": whole}, {"evaluation": whole[torch.tensor([1, 2, *range(6, 20)])]})
    assert "only some right: 20% of 10 on the evaluation side" in note


def test_a_model_that_cannot_do_the_task_is_told_so() -> None:
    masked = MaskedModel(tiny_model("llama", vocab_size=256, max_position_embeddings=128))
    with pytest.raises(UserError, match=r"cannot do the task induction: .* of 16 evaluation prompts"):
        solved(load(InductionTask(**SMALL, needed_accuracy=1.0)), masked)


def test_prompts_too_long_for_a_model_and_tokens_it_does_not_have_are_refused() -> None:
    with pytest.raises(UserError, match="more than the 16 positions"):
        IndirectObject(**SMALL).load(BYTES, "bytes", 256, 16, 0)
    with pytest.raises(UserError, match="vocabulary has only 64"):
        load(IndirectObject(**SMALL), vocab_size=64)
    with pytest.raises(UserError, match="has no tokenizer"):
        load(IndirectObject(**SMALL), tokenizer=None)
    with pytest.raises(UserError, match="corruption"):
        IndirectObject(corruption="none")  # type: ignore[arg-type]
