"""Numbers with units, read strictly: the whole text must be one number and at most one unit.

`1,234.5`, `1.234,5`, `12%`, `-3e5`, `3 × 10^4`, `1 1/2`, `$2.5 million`, `3 km` and `3000 m`. Values are fractions, so
equal means equal; a tolerance is the caller's. A unit that only one side names is not held against the other, and a
percentage matches its number (12 %, 12) and its share (0.12). Temperatures are not converted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from agentvision.rewards.grading import canonical, unwrap

MAX_CHARS = 200
"""A longer text is no number."""
MAX_DIGITS = 40
MAX_EXPONENT = 100

_MULTIPLIERS: dict[str, int] = {
    "hundred": 10**2,
    **dict.fromkeys(("k", "K", "thousand"), 10**3),
    **dict.fromkeys(("M", "mn", "mio", "million"), 10**6),
    **dict.fromkeys(("B", "bn", "billion"), 10**9),
    **dict.fromkeys(("T", "tn", "trillion"), 10**12),
}

# dimension: unit names -> factor to the dimension's base unit
_TABLE: dict[str, dict[str, str]] = {
    "length": {
        "nm nanometer nanometre": "1/1000000000",
        "μm um micron micrometer micrometre": "1/1000000",
        "mm millimeter millimetre": "1/1000",
        "cm centimeter centimetre": "1/100",
        "dm decimeter decimetre": "1/10",
        "m meter metre": "1",
        "km kilometer kilometre": "1000",
        "in inch inches": "0.0254",
        "ft foot feet": "0.3048",
        "yd yard": "0.9144",
        "mi mile": "1609.344",
    },
    "area": {
        "mm^2": "1/1000000",
        "cm^2": "1/10000",
        "m^2 sqm": "1",
        "km^2 sqkm": "1000000",
        "ha hectare": "10000",
        "ft^2 sqft": "0.09290304",
        "acre": "4046.8564224",
    },
    "volume": {
        "ml milliliter millilitre cm^3 cc": "1/1000",
        "cl centiliter centilitre": "1/100",
        "dl deciliter decilitre": "1/10",
        "l L liter litre dm^3": "1",
        "m^3": "1000",
    },
    "mass": {
        "mg milligram": "1/1000",
        "g gram": "1",
        "kg kilogram kilo": "1000",
        "t tonne": "1000000",
        "oz ounce": "28.349523125",
        "lb lbs": "453.59237",
    },
    "time": {
        "ms millisecond": "1/1000",
        "s sec second": "1",
        "min minute": "60",
        "h hr hrs hour": "3600",
        "day": "86400",
        "week": "604800",
    },
    "years": {"month": "1/12", "yr year": "1"},
    "speed": {"m/s": "1", "km/h kph kmh": "5/18", "mph mi/h": "0.44704"},
    "data": {"byte": "1", "kB KB": "1000", "MB": "1000000", "GB": "1000000000", "TB": "1000000000000"},
    "energy": {"J joule": "1", "kJ": "1000", "cal": "4.184", "kcal": "4184", "Wh": "3600", "kWh": "3600000"},
    "power": {"mW": "1/1000", "W watt": "1", "kW": "1000", "MW": "1000000"},
    "force": {"N newton": "1", "kN": "1000"},
    "voltage": {"mV": "1/1000", "V volt": "1", "kV": "1000"},
    "current": {"mA": "1/1000", "A amp ampere": "1"},
    "frequency": {"Hz hertz": "1", "kHz": "1000", "MHz": "1000000", "GHz": "1000000000"},
    "angle": {"° deg degree": "1"},
    "celsius": {"°C degC": "1"},
    "fahrenheit": {"°F degF": "1"},
    "%": {"% percent pct": "1/100"},
    "usd": {"$ USD dollar us$": "1", "cent ¢": "1/100"},
    "eur": {"€ EUR euro": "1"},
    "gbp": {"£ GBP pound": "1"},
    "jpy": {"¥ JPY yen": "1"},
    "inr": {"₹ INR rupee": "1"},
}
_UNITS: dict[str, tuple[str, Fraction]] = {
    name: (dimension, Fraction(factor))
    for dimension, units in _TABLE.items()
    for names, factor in units.items()
    for name in names.split()
}
_WORDS: tuple[str, ...] = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
)

_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        (r"\\([%$])", r"\1"),
        (r"\\[,;:! ]|~", " "),
        (r"\{,\}", ","),
        (r"\\(?:times|cdot)\b", "×"),
        (r"\^ ?\{? ?\\circ ?\}?|\\degree\b", "°"),
        (r"\\[dt]?frac ?\{([0-9]+)\} ?\{([0-9]+)\}", r" \1/\2"),
        (r"\\(?:text|textrm|mathrm|mbox) ?\{([^{}]*)\}", r" \1"),
        (r"\b(?:square|sq\.?) ?(kilo|centi|milli)?(?:meters?|metres?)\b", r"\1m^2"),
        (r"\b(?:square|sq\.?) ?(?:feet|foot|ft)\b", "ft^2"),
        (r"\bcubic (centi)?(?:meters?|metres?)\b", r"\1m^3"),
        (r"\bkilom\^", "km^"),
        (r"\bcentim\^", "cm^"),
        (r"\bmillim\^", "mm^"),
        (r"(?:°|\bdeg(?:rees?)?) ?(?:c|celsius)$", "°C"),
        (r"(?:°|\bdeg(?:rees?)?) ?(?:f|fahrenheit)$", "°F"),
        (r"\bper cent\b", "%"),
        (r"\b(kilometers?|kilometres?|km) ?(?:per|/|an) ?(?:hour|hr|h)\b", "km/h"),
        (r"\bmiles? ?(?:per|/|an) ?(?:hour|hr|h)\b", "mph"),
        (r"\b(meters?|metres?|m) ?(?:per|/|a) ?(?:second|sec|s)\b", "m/s"),
    )
)
_LEAD = re.compile(
    r"(?:(?:the )?(?:final )?answer(?: is)?:? |about |approximately |approx\.? |around |roughly |[~≈=] ?|[a-z] ?= ?)",
    re.IGNORECASE,
)
_NUMBER = re.compile(
    r"""
    (?P<sign>[+-]?)\ ?(?P<front>us\$|[$€£¥₹])?\ ?(?P<inner_sign>[+-]?)
    (?: (?P<whole>[0-9]+)\ (?P<part>[0-9]+/[0-9]+)
      | (?P<numerator>[0-9.,]*[0-9])\ ?/\ ?(?P<denominator>[0-9]+)
      | (?P<spaced>[0-9]{1,3}(?:\ [0-9]{3})+)(?![0-9])
      | (?P<decimal>[0-9.,]*[0-9]\.?)
    )
    (?: e(?P<e>[+-]?[0-9]+) | \ ?[x×*]\ ?10\ ?\^\ ?\{?(?P<power>[+-]?[0-9]+)\}? )?
    (?P<gap>\ ?)(?P<tail>.*)
    """,
    re.VERBOSE | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number as written, and its unit: `number` × `factor` is its value in the dimension's base unit."""

    number: Fraction
    dimension: str = ""
    """Of the unit: a name of the table, an unknown unit's own word, or empty without a unit."""
    factor: Fraction = Fraction(1)
    code: bool = False
    """The unit is one letter stuck to the number (`5A`), perhaps no unit at all: it may not be left out."""

    @property
    def value(self) -> Fraction:
        return self.number * self.factor


def parse_quantity(text: str) -> Quantity | None:
    """The one number, with its unit, that the whole text is; None for anything else."""
    if len(text) > MAX_CHARS:
        return None
    text = canonical(unwrap(text)).strip("\"'* ")
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = _LEAD.sub("", " ".join(text.split()), count=1) if _LEAD.match(text) else " ".join(text.split())
    word, _, rest = text.rstrip(".;:, ").partition(" ")
    if word.lower() in _WORDS:
        text = f"{_WORDS.index(word.lower())} {rest}"
    found = _NUMBER.fullmatch(text.rstrip(".;:, "))
    if found is None:
        return None
    number = _number(found)
    return None if number is None else _with_unit(number, found)


def same_quantity(answer: str, truth: str, *, tolerance: float = 0.0) -> bool | None:
    """Whether the answer is the truth's number, within a relative tolerance of it; None when the truth is no number."""
    wanted = parse_quantity(truth)
    if wanted is None:
        return None
    given = parse_quantity(answer)
    if given is None:
        return False
    margin = Fraction(str(tolerance))
    if given.dimension == wanted.dimension:
        return _near(given.value, wanted.value, margin)
    if given.dimension and wanted.dimension:
        return False
    if given.code or wanted.code:
        return False
    if _near(given.number, wanted.number, margin):
        return True
    return "%" in (given.dimension, wanted.dimension) and _near(given.value, wanted.value, margin)


def _near(given: Fraction, wanted: Fraction, margin: Fraction) -> bool:
    return abs(given - wanted) <= margin * abs(wanted)


def _number(found: re.Match[str]) -> Fraction | None:
    if sum(c.isdigit() for c in found[0]) > MAX_DIGITS or (found["sign"] and found["inner_sign"]):
        return None
    number: Fraction | None
    try:
        if found["whole"]:
            number = Fraction(found["whole"]) + Fraction(found["part"])
        elif found["numerator"]:
            above = _decimal(found["numerator"])
            number = None if above is None else above / Fraction(found["denominator"])
        else:
            number = _decimal(found["spaced"].replace(" ", "") if found["spaced"] else found["decimal"])
    except ZeroDivisionError:
        return None
    exponent = int(found["e"] or found["power"] or 0)
    if number is None or abs(exponent) > MAX_EXPONENT:
        return None
    number *= Fraction(10) ** exponent
    return -number if "-" in (found["sign"], found["inner_sign"]) else number


def _decimal(digits: str) -> Fraction | None:
    """Digits with separators: groups of three are thousands, whichever of `.` and `,` separates them."""
    digits = digits.removesuffix(".")
    comma, dot = digits.rfind(","), digits.rfind(".")
    if comma >= 0 and dot >= 0:
        point, group = (",", ".") if comma > dot else (".", ",")
        whole, _, fraction = digits.rpartition(point)
        if not _grouped(whole, group):
            return None
        digits = f"{whole.replace(group, '')}.{fraction}"
    elif comma >= 0:
        grouped = _grouped(digits, ",") and not digits.startswith("0")
        digits = digits.replace(",", "" if grouped else ".")
    elif digits.count(".") > 1:
        if not _grouped(digits, "."):
            return None
        digits = digits.replace(".", "")
    try:
        return Fraction(digits)
    except ValueError:
        return None


def _grouped(digits: str, separator: str) -> bool:
    first, *others = digits.split(separator)
    return 1 <= len(first) <= 3 and all(len(group) == 3 for group in others) and (first + "".join(others)).isdigit()


def _with_unit(number: Fraction, found: re.Match[str]) -> Quantity | None:
    front, gap, tail = (found["front"] or "").lower(), found["gap"], found["tail"].strip()
    multiplier = re.match(r"([a-z]+)(?: (.*))?$", tail, re.IGNORECASE)
    if multiplier:
        word = multiplier[1]
        factor = _MULTIPLIERS.get(word if len(word) == 1 else word.lower())
        if factor and (len(word) > 1 or front or not gap):
            number, gap, tail = number * factor, " ", (multiplier[2] or "").removeprefix("of ")
    unit = _unit(tail, separate=bool(gap)) if tail else ("", Fraction(1))
    if unit is None:
        return None
    if front:
        currency = _UNITS[front][0]
        if unit[0] not in ("", currency):
            return None
        unit = currency, Fraction(1)
    return Quantity(number, *unit, code=len(tail) == 1 and tail.isalpha() and not gap)


def _unit(name: str, *, separate: bool) -> tuple[str, Fraction] | None:
    """Dimension and factor of a unit's name. An unknown word is its own dimension when it stands apart."""
    spellings = (name, name.removesuffix("s"), name.lower(), name.lower().removesuffix("s"))
    for spelling in spellings[: 1 if len(name) == 1 else 4]:
        if spelling in _UNITS:
            return _UNITS[spelling]
    if separate and len(name) > 1 and name.isalpha() and name.lower() not in _WORDS:
        return name.lower().removesuffix("s"), Fraction(1)
    return None
