"""Grading by text: what is the same answer and what is not, for any string and in bounded time."""

import time

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentvision.rewards.grading import (
    anls,
    canonical,
    exact_match,
    normalise,
    options_of,
    parse_choice,
    same_choice,
    unbox,
)
from agentvision.rewards.quantities import parse_quantity, same_quantity

any_text = st.text(st.characters(codec=None), max_size=60) | st.text(
    "(){}[]\\boxedtfrac$ABab.,:;!1234 %-/^", max_size=60
)

HOSTILE = [
    "",
    " ",
    ":",
    "...",
    "()",
    "\ud800",
    "\udc00\ud800",
    "\x00",
    "\\boxed{}",
    "\\boxed{\\boxed{}}",
    "\\boxed{",
    "}}}}",
    "$$",
    "$",
    "\\",
    "\\text{}",
    "NaN",
    "inf",
    "1e999999999",
    "-",
    "½" * 5,
    "١٢٣",
    "²",
]


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{A}", "A"),
        (r"so \boxed{ A } holds", "A"),
        (r"\boxed {A}", "A"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{1} and then \boxed{2}", "2"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{a{b{c}}d}", "a{b{c}}d"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{}", ""),
        (r"\boxed{\boxed{}}", ""),
        (r"\boxed{1} \boxed{2", "1"),
        (r"}} \boxed{x}", "x"),
        (r"\boxed{x", None),
        ("no box", None),
        ("", None),
    ],
)
def test_box_is_opened_at_its_own_brace(text, content):
    assert unbox(text) == content


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Blue", "blue"),
        ("blue.", "blue"),
        (" blue\n", "blue"),
        ('"blue"', "blue"),
        ("**blue**", "blue"),
        ("(blue)", "blue"),
        ("the blue", "blue"),
        ("a cat", "cat"),
        (r"\boxed{blue}", "blue"),
        (r"\boxed{\text{blue}}", "blue"),
        (r"$\text{blue}$", "blue"),
        ("dark   blue", "dark blue"),
        ("it’s", "it's"),
        ("ｂｌｕｅ", "blue"),
        ("STRASSE", "straße"),
        ("−5", "-5"),
        ("10²", "10^2"),
        ("½", "1/2"),
        ("stop!", "stop"),
        (":", ":"),
    ],
)
def test_same_text_matches(one, other):
    assert exact_match(one, other)
    assert exact_match(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("-5", "5"),
        (".5", "5"),
        ("3.5", "35"),
        ("5!", "5"),
        ("5%", "5"),
        ("10²", "102"),
        ("blue or red", "blue"),
        ("A B", "B"),
        ("", "blue"),
        (":", "blue"),
        (":", "."),
        ("not blue", "blue"),
        ("b l u e", "blue"),
        (r"\boxed{}", "blue"),
        (r"\boxed{red} blue", "blue"),
        ("[3, 4]", "(3, 4)"),
    ],
)
def test_other_text_does_not_match(one, other):
    assert not exact_match(one, other)
    assert not exact_match(other, one)


OPTIONS = {"A": "a red bus", "B": "a dog", "C": "3 cats"}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("(b).", "B"),
        ("B.", "B"),
        ("B)", "B"),
        ("B:", "B"),
        (r"\boxed{B}", "B"),
        (r"\boxed{\text{B}}", "B"),
        (r"$\boxed{(B)}$", "B"),
        ("**B**", "B"),
        ("Option B", "B"),
        ("The answer is (B).", "B"),
        ("Answer: B", "B"),
        ("B. a dog", "B"),
        ("(B) a dog", "B"),
        ("B: Dog.", "B"),
        ("a dog", "B"),
        ("Dog", "B"),
        ("3 cats", "C"),
        ("A dog", "B"),
        ("A", "A"),
    ],
)
def test_choice_names_its_option(answer, letter):
    assert parse_choice(answer, OPTIONS) == letter
    assert same_choice(answer, letter, OPTIONS) is True


@pytest.mark.parametrize(
    "answer",
    ["", ":", "A or B", "A, B", "AB", "A B C", "B. a red bus", "(A) (B)", "D", "E.", "dogs", "Because", "not B"],
)
def test_choice_of_none_or_several_is_no_choice(answer):
    assert parse_choice(answer, OPTIONS) is None
    assert same_choice(answer, "B", OPTIONS) is False


def test_choice_without_known_options_takes_any_letter():
    assert parse_choice("D") == "D"
    assert parse_choice("D. something") == "D"
    assert same_choice("D", "forty") is None


def test_choice_by_two_equal_options_is_none():
    assert parse_choice("x", {"A": "x", "B": "x"}) is None


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("What? (A) cat (B) dog", {"A": "cat", "B": "dog"}),
        ("What?\nA. cat\nB. a dog.\nC. none", {"A": "cat", "B": "a dog.", "C": "none"}),
        ("What?\nA) 1\nB) 2", {"A": "1", "B": "2"}),
        ("A: x B: y", {"A": "x", "B": "y"}),
        ("Is it A. B. Carter's? (A) yes (B) no", {"A": "yes", "B": "no"}),
        ("What is in box A. Say it.", {}),
        ("Which? (B) x (C) y", {}),
        ("(A) x (B) y (C) both (A) and (B)", {"A": "x", "B": "y", "C": "both (A) and (B)"}),
        ("", {}),
    ],
)
def test_options_are_read_from_the_question(question, options):
    assert options_of(question) == options


@pytest.mark.parametrize(
    ("answer", "truths", "value"),
    [
        ("invoice", ["invoice"], 1.0),
        ("Invoice.", ["invoice"], 1.0),
        ("invoise", ["invoice"], 6 / 7),
        ("invoise", ["nothing", "invoice"], 6 / 7),
        ("inxxxxx", ["invoice"], 0.0),
        ("", ["invoice"], 0.0),
        ("invoice", [], 0.0),
        ("abcd", ["abxy"], 0.5),
    ],
)
def test_anls_table(answer, truths, value):
    assert anls(answer, truths) == pytest.approx(value)


@hypothesis.settings(deadline=None)
@given(any_text, any_text)
def test_text_rules_are_total_and_even_handed(one, other):
    assert exact_match(one, other) is exact_match(other, one)
    assert exact_match(one, one)
    assert anls(one, [other]) == pytest.approx(anls(other, [one]))
    assert 0 <= anls(one, [other]) <= 1
    assert parse_choice(one, OPTIONS) in (None, "A", "B", "C")
    assert same_choice(one, other) in (None, True, False)
    assert same_quantity(one, other) in (None, True, False)
    unbox(one), options_of(one)


@hypothesis.settings(deadline=None)
@given(any_text)
def test_canonical_and_normalised_text_is_stable(text):
    assert canonical(canonical(text)) == canonical(text)
    assert normalise(text) == normalise(text + " ")


@pytest.mark.parametrize("answer", HOSTILE)
@pytest.mark.parametrize("truth", ["blue", "B", "3 km", "7", r"\frac{1}{2}"])
def test_hostile_answers_are_wrong(answer, truth):
    assert not exact_match(answer, truth)
    assert not same_choice(answer, truth, OPTIONS)
    assert not same_quantity(answer, truth)
    assert anls(answer, [truth]) < 0.5


@pytest.mark.parametrize(
    "piece",
    [
        "\\boxed{",
        "\\boxed{}",
        "\\boxed ",
        "{",
        "}",
        "(",
        "((A)",
        "(A) ",
        "A. ",
        "A.B.",
        "1,",
        "1 ",
        "1.",
        "1/",
        "-",
        "$",
        "\\text{",
        "\\frac{1}{",
        "the ",
        "answer is ",
        '.".',
        " ",
        "\n",
        "²",
        "½",
        "square ",
        "degrees ",
        "\ud800",
        "x",
    ],
)
def test_no_text_takes_long(piece):
    """A regular expression that backtracks would need minutes or years for one of these."""
    text = piece * (60_000 // len(piece))
    short = (piece * 200)[:190]  # what the number rule still reads
    started = time.process_time()
    for answer in (text, text + "!", short, short + "?"):
        exact_match(answer, "blue")
        same_choice(answer, "B", OPTIONS)
        parse_quantity(answer)
        anls(answer, ["blue"])
        options_of(answer)
    assert time.process_time() - started < 5


@hypothesis.settings(deadline=None, max_examples=30)
@given(
    st.lists(st.sampled_from(["\\boxed{", "}", "{", "(", "A", ".", "$", "1", ",", "\\", " ", '"', "!"]), max_size=3000)
)
def test_mixed_long_text_is_quick(pieces):
    text = "".join(pieces)
    exact_match(text, "blue")
    same_choice(text, "B", OPTIONS)
    same_quantity(text, "5")
