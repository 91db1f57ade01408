"""GlyphVQA: a function of (seed, split, i); splits that share no picture; pictures that hold easy and hard questions."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from agentvision.data.glyphs import ALPHABET, GlyphVQA
from agentvision.data.questions import LOOK
from agentvision.data.scene import COLOURS, SHAPES
from agentvision.errors import DataError
from agentvision.protocol import Protocol

N = 400


@pytest.fixture(scope="module")
def samples():
    data = GlyphVQA(split="test", seed=3)
    return [data[i] for i in range(N)]


def test_a_sample_depends_on_seed_split_and_index_alone():
    once, again = GlyphVQA(split="train", seed=7), GlyphVQA(split="train", seed=7, size=50)
    for i in (49, 3, 17):
        a, b = once[i], again[i]
        assert (a.id, a.question, a.answer, a.meta) == (b.id, b.question, b.answer, b.meta)
        assert np.array_equal(np.asarray(a.images[0]), np.asarray(b.images[0]))
    other = GlyphVQA(split="train", seed=8)
    assert any(once[i].answer != other[i].answer for i in range(10))


def test_no_scene_can_be_in_both_splits():
    for split in ("train", "test"):
        data = GlyphVQA(split=split, size=N)
        assert {data.scene(i).split for i in range(N)} == {split}


def test_every_picture_holds_large_and_small_type():
    data = GlyphVQA(split="train", size=N)
    for i in range(N):
        assert {card.large for card in data.scene(i).cards} == {True, False}


def test_a_colour_names_one_thing():
    data = GlyphVQA(split="train", size=N)
    for i in range(N):
        scene = data.scene(i)
        colours = [thing.colour for thing in (*scene.cards, *scene.shapes)]
        assert len(set(colours)) == len(colours)
        assert len({shape.kind for shape in scene.shapes}) == len(scene.shapes)


def test_the_wording_does_not_tell_what_is_hard(samples):
    for kind in {s.meta["kind"] for s in samples if s.meta["needs_original"]}:
        hard = {s.question for s in samples if s.meta["kind"] == kind and s.meta["needs_original"]}
        easy = {s.question for s in samples if s.meta["kind"] == kind and not s.meta["needs_original"]}
        assert hard & easy, kind
    assert not any("small" in s.question or "large" in s.question for s in samples)


def test_kinds_shares_and_answers(samples):
    kinds = Counter(s.meta["kind"] for s in samples)
    assert len(kinds) >= 5 and min(kinds.values()) >= 10
    assert 0.42 < np.mean([s.meta["needs_original"] for s in samples]) < 0.58
    for s in samples:
        if s.meta["kind"] == "code":
            assert len(s.answer) == 2 and set(s.answer) <= set(ALPHABET)
        elif s.meta["kind"] == "colour":
            assert s.answer in COLOURS
        elif s.meta["kind"] == "shape":
            assert s.answer in SHAPES


def test_answers_agree_with_the_scene(samples):
    data = GlyphVQA(split="test", seed=3)
    for i, s in enumerate(samples):
        cards = {card.colour: card for card in data.scene(i).cards}
        if s.meta["kind"] in ("code", "first", "last"):
            card = next(card for colour, card in cards.items() if f"the {colour} card" in s.question)
            assert card.large != s.meta["needs_original"] and s.answer in card.text


def test_a_guessable_regime():
    data = GlyphVQA(split="test", alphabet="47", code_length=1, hard_share=0.1, size=N)
    written = [s for s in (data[i] for i in range(N)) if s.meta["kind"] == "code"]
    assert {s.answer for s in written} == {"4", "7"}
    assert 0.05 < np.mean([data[i].meta["needs_original"] for i in range(N)]) < 0.15


def test_pictures_have_the_size_of_their_grid(samples):
    assert samples[0].images[0].size == (96, 64)
    assert GlyphVQA(split="test", columns=7, rows=4)[0].images[0].size == (224, 128)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"split": "validation"}, "split"),
        ({"hard_share": 1.5}, "hard_share"),
        ({"alphabet": "3O"}, "O"),
        ({"alphabet": ""}, "alphabet"),
        ({"code_length": 3}, "code_length"),
        ({"columns": 2, "rows": 2}, "grid"),
    ],
)
def test_bad_settings_are_named(settings, what):
    with pytest.raises(DataError, match=what):
        GlyphVQA(**{"split": "train", **settings})


def test_an_index_past_the_end_ends_iteration():
    assert len(list(GlyphVQA(split="test", size=3))) == 3


def test_demonstrations_are_in_the_grammar(samples):
    protocol, data = Protocol(), GlyphVQA(split="test", seed=3)
    for s in samples[:50]:
        look = [protocol.parse(text) for text in data.demonstration(s, look=True)]
        (direct,) = [protocol.parse(text) for text in data.demonstration(s, look=False)]
        assert all(turn.problem is None for turn in (*look, direct))
        assert look[0].call.name == "resize_image" and look[1].answer == s.answer
        assert look[0].think == direct.think == s.meta["sees"] and look[1].think == s.meta["clear"]
        assert LOOK in data.demonstration(s, look=True)[0]


def test_a_thought_tells_what_can_be_read_and_no_more(samples):
    for s in samples:
        told = s.meta["sees"].split(" ")[-1]
        assert (told == "small") == s.meta["needs_original"]
        assert s.answer in s.meta["clear"].split(" ")[-1]


def test_a_direct_demonstration_of_a_hard_question_is_a_guess(samples):
    protocol, data = Protocol(), GlyphVQA(split="test", seed=3)
    hard = [s for s in samples if s.meta["needs_original"]]
    right = [protocol.parse(data.demonstration(s, look=False)[0]).answer == s.answer for s in hard]
    assert np.mean(right) < 0.1
    easy = [s for s in samples if not s.meta["needs_original"]]
    assert all(protocol.parse(data.demonstration(s, look=False)[0]).answer == s.answer for s in easy)
