"""Numbers with units: what they are worth, what equals what, and what is no number."""

from fractions import Fraction

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentvision.rewards.quantities import parse_quantity, same_quantity


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5", "5"),
        ("5.", "5"),
        (".5", "1/2"),
        ("-5", "-5"),
        ("−5", "-5"),
        ("+5", "5"),
        ("1,234.5", "1234.5"),
        ("1.234,5", "1234.5"),
        ("1,234", "1234"),
        ("1,234,567", "1234567"),
        ("1.234.567", "1234567"),
        ("1 234 567", "1234567"),
        ("1{,}234", "1234"),
        ("3,14", "3.14"),
        ("0,125", "1/8"),
        ("1.234", "1.234"),
        ("3e5", "300000"),
        ("-1.5E-3", "-0.0015"),
        ("3 × 10^4", "30000"),
        (r"3 \times 10^{4}", "30000"),
        ("3x10^-2", "0.03"),
        ("1.2×10⁵", "120000"),
        ("1/2", "1/2"),
        ("½", "1/2"),
        ("1½", "3/2"),
        ("1 1/2", "3/2"),
        ("-1 1/2", "-3/2"),
        (r"\frac{3}{4}", "3/4"),
        (r"-\frac{3}{4}", "-3/4"),
        (r"\boxed{42}", "42"),
        ("$42$", "42"),
        ("x = 42", "42"),
        ("The answer is 42.", "42"),
        ("about 42", "42"),
        ("≈42", "42"),
        ("three", "3"),
        ("Twenty", "20"),
        ("five hundred", "500"),
        ("2.5 million", "2500000"),
        ("2.5M", "2500000"),
        ("7k", "7000"),
    ],
)
def test_number_is_read(text, number):
    found = parse_quantity(text)
    assert found is not None
    assert (found.value, found.dimension) == (Fraction(number), "")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ":",
            "-",
            ".",
            ",",
            "e5",
            "twenty one",
            "five hundred six",
            "1/0",
            "0/0",
            "1 0/0",
            "3:45",
            "3/4/2020",
            "12-05-2020",
            "555-1234",
        ),
        *("3 or 4", "1 2 3", "1, 2", "3-4", "--5", "1st", "5x", "1,23,456", "1.23.4", "1e999", "NaN", "inf", "٣"),
        *("$5 €", "5 km 3 m", "5 blue cars", "5 apples and 3 pears", "9" * 300, "1" * 41, "1e", "5%%", "\ud800"),
    ],
)
def test_what_is_not_one_number_is_none(text):
    assert parse_quantity(text) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3 km", "3000 m"),
        ("3km", "3,000 metres"),
        ("3 Km", "3 kilometers"),
        ("12 in", "1 foot"),
        ("2 in", "5.08 cm"),
        ("1 h", "60 min"),
        ("90 minutes", "1.5 hours"),
        ("2 weeks", "14 days"),
        ("18 months", "1.5 years"),
        ("36 km/h", "10 m/s"),
        ("60 miles per hour", "60 mph"),
        ("10 square kilometers", "10 km²"),
        ("10 m^2", "100000 cm^2"),
        ("1 L", "1000 ml"),
        ("0.5 kg", "500 g"),
        ("1 µm", "0.001 mm"),
        ("$5", "5 dollars"),
        ("$2.5 million", "2,500,000 USD"),
        ("5 €", "€5"),
        ("25°C", "25 degrees Celsius"),
        (r"25^\circ C", "25 °C"),
        (r"30^\circ", "30 degrees"),
        ("50 %", "50 percent"),
        (r"50\%", "50 per cent"),
        ("50%", "0.5"),
        ("50%", "50"),
        ("42 apples", "42 Apple"),
        ("3 million people", "3,000,000 people"),
        (r"3.0\text{ cm}", "3 cm"),
        ("3 km", "3"),
        ("42 apples", "42"),
        ("5A", "5 A"),
        ("5 ms", "0.005 s"),
    ],
)
def test_same_quantity_either_way(one, other):
    assert same_quantity(one, other) is True
    assert same_quantity(other, one) is True


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3 km", "3 m"),
        ("3 km", "3 kg"),
        ("3 km", "3000"),
        ("5 m", "5 million"),
        ("5 MW", "5 mW"),
        ("25°C", "25°F"),
        ("$5", "€5"),
        ("42 apples", "42 oranges"),
        ("50%", "0.05"),
        ("50%", "50 m"),
        ("-5", "5"),
        ("0.333", "1/3"),
        ("5A", "5"),
        ("7K", "7"),
        ("1.234", "1,234"),
    ],
)
def test_other_quantity_either_way(one, other):
    assert same_quantity(one, other) is False
    assert same_quantity(other, one) is False


def test_truth_that_is_no_number_is_not_for_this_rule():
    assert same_quantity("5", "blue") is None
    assert same_quantity("blue", "5") is False


@pytest.mark.parametrize(
    ("answer", "right"),
    [("100", True), ("105", True), ("95", True), ("105.1", False), ("94.9", False), ("-100", False)],
)
def test_tolerance_is_relative_to_the_truth(answer, right):
    assert same_quantity(answer, "100", tolerance=0.05) is right


def test_tolerance_of_nothing_is_nothing():
    assert same_quantity("0.001", "0", tolerance=0.05) is False
    assert same_quantity("-0", "0", tolerance=0.05) is True


integers = st.integers(-(10**12), 10**12)


@hypothesis.settings(deadline=None)
@given(integers, st.integers(0, 6))
def test_every_spelling_of_a_decimal_is_the_same(whole, places):
    value = Fraction(whole, 10**places)
    sign, digits = ("-" if whole < 0 else ""), str(abs(whole)).rjust(places + 1, "0")
    plain = sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)
    grouped = sign + f"{int(digits[:-places] if places else digits):,}" + (f".{digits[-places:]}" if places else "")
    for text in (plain, f"{whole}e-{places}", f" {plain} ", f"\\boxed{{{plain}}}", f"{whole}/{10**places}"):
        found = parse_quantity(text)
        assert found is not None and found.value == value, text
    found = parse_quantity(grouped)
    ambiguous = grouped.count(",") == 1 and grouped.lstrip("-").startswith("0")
    assert ambiguous or (found is not None and found.value == value), grouped


units = st.sampled_from(["", "%", "km", "m", "kg", "apples", "s", "days", "USD", "°C"])


@hypothesis.settings(deadline=None)
@given(integers, units, integers, units)
def test_equality_is_symmetric_and_reflexive(a, a_unit, b, b_unit):
    one, other = f"{a} {a_unit}", f"{b} {b_unit}"
    assert same_quantity(one, other) is same_quantity(other, one)
    assert same_quantity(one, one) is True
