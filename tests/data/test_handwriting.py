"""Handwriting: real scans, split by scan, under the same rules as GlyphVQA."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from agentvision.data.handwriting import TEST_SCANS, Handwriting, scans
from agentvision.errors import DataError


def test_no_scan_is_in_both_splits():
    train = {scan.tobytes() for digit in scans("train") for scan in digit}
    test = [scan.tobytes() for digit in scans("test") for scan in digit]
    assert len(test) == TEST_SCANS and len(train) + len(test) >= 1790
    assert not train & set(test)


def test_a_sample_depends_on_seed_split_and_index_alone():
    a, b = Handwriting(split="train", seed=7)[12], Handwriting(split="train", seed=7, size=20)[12]
    assert (a.id, a.question, a.answer, a.meta) == (b.id, b.question, b.answer, b.meta)
    assert np.array_equal(np.asarray(a.images[0]), np.asarray(b.images[0]))


def test_half_of_the_questions_need_the_original():
    data = Handwriting(split="test", size=300)
    samples = [data[i] for i in range(300)]
    assert 0.4 < np.mean([s.meta["needs_original"] for s in samples]) < 0.6
    assert len({s.meta["kind"] for s in samples}) >= 5
    assert {s.meta["sees"].split(" ")[-1] for s in samples if s.meta["needs_original"]} == {"small"}
    assert samples[0].images[0].size == (96, 64)


def test_demonstrations_guess_digits():
    data = Handwriting(split="train", size=100)
    hard = next(s for s in data if s.meta["needs_original"] and s.meta["kind"] == "code")
    guess = data.demonstration(hard, look=False)[0].split("<answer>")[1].split("</answer>")[0]
    assert len(guess) == 2 and guess.isdigit()


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    scans.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    try:
        with pytest.raises(DataError, match=r"agentvision\[handwriting\]"):
            Handwriting(split="train")
    finally:
        scans.cache_clear()
