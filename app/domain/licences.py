"""Licences of prompts: SPDX expressions, normalised, and what they ask of whoever uses the text.

Syntax: SPDX 3.0 annex B (the same as 2.3 annex D). Ids: the SPDX list and ScanCode's `LicenseRef-scancode-*`, as
shipped with `license-expression`. Its objects refuse to be booleans, so every test here is `is None` or a length.
"""

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeVar

from app.errors import InvalidLicense

if TYPE_CHECKING:
    from boolean.boolean import Expression  # type: ignore[import-untyped]
    from license_expression import Licensing

NOASSERTION: Final = "NOASSERTION"
NONE: Final = "NONE"
MAX_EXPRESSION_CHARS: Final = 512
_MAX_DEPTH: Final = 32

T = TypeVar("T")

_REFERENCE = re.compile(r"(?i:(documentref)-([a-z0-9.-]+):)?(?i:licenseref)-([A-Za-z0-9.-]+)")

# What people write (the Hugging Face hub's own ids among it) and what they most likely mean. Only ever a suggestion:
# the version of a licence is not guessed.
_OFTEN_MEANT: Final = {
    "apache": "Apache-2.0",
    "apache 2": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache2": "Apache-2.0",
    "bsd": "BSD-3-Clause",
    "cc": "CC-BY-4.0 (name the variant and the version)",
    "cc by 4.0": "CC-BY-4.0",
    "cc-by": "CC-BY-4.0 (name the version)",
    "cc-by-nc": "CC-BY-NC-4.0 (name the version)",
    "cc-by-sa": "CC-BY-SA-4.0 (name the version)",
    "cc0": "CC0-1.0",
    "cdla": "CDLA-Permissive-2.0 (name the variant and the version)",
    "gemma": "LicenseRef-scancode-gemma-tou-2024-04-01",
    "llama2": "LicenseRef-scancode-llama-2-license-2023",
    "llama3.1": "LicenseRef-scancode-llama-3.1-license-2024",
    "llama3.2": "LicenseRef-scancode-llama-3.2-license-2024",
    "llama3.3": "LicenseRef-scancode-llama-3.3-license-2024",
    "llama4": "LicenseRef-scancode-llama-4-license-2025",
    "odbl": "ODbL-1.0",
    "odc-by": "ODC-By-1.0",
    "openrail": "LicenseRef-scancode-bigscience-open-rail-m",
    "pddl": "PDDL-1.0",
    "public domain": "CC0-1.0 or LicenseRef-scancode-public-domain",
    "public-domain": "CC0-1.0 or LicenseRef-scancode-public-domain",
    "none": "NONE, alone (no licence was given), or NOASSERTION (not known)",
    "noassertion": "NOASSERTION, alone",
    "other": "LicenseRef-<name> for a licence that has no id, or NOASSERTION where it is not known",
    "proprietary": "LicenseRef-<name>, and describe it with a licence override",
    "unknown": "NOASSERTION",
}


@lru_cache(maxsize=1)
def _licensing() -> "Licensing":
    from license_expression import get_spdx_licensing  # 0.1 s the first time: paid by whoever reads a licence

    return get_spdx_licensing()


@lru_cache(maxsize=1)
def _categories() -> dict[str, str]:
    """ScanCode's category of each id ("Permissive", "Copyleft", …), by lower-case id."""
    from license_expression import get_license_index

    return {
        entry["spdx_license_key"].lower(): entry["category"]
        for entry in get_license_index()
        if entry.get("spdx_license_key") is not None
    }


@lru_cache(maxsize=8192)
def normalise_license(text: str) -> str:
    """The expression in its canonical spelling: ids as SPDX writes them, duplicates gone, operands in a fixed order.

    `NOASSERTION` (nobody knows) and `NONE` (there is no licence) stand alone. Ids that no list knows must be
    `LicenseRef-…`. Raises `InvalidLicense` with what is wrong and how to mend it.
    """
    text = text.strip()
    if not text:
        raise InvalidLicense(
            "the licence is empty: leave it out (the project's default is taken), or write NOASSERTION if it is unknown"
        )
    if len(text) > MAX_EXPRESSION_CHARS:
        raise InvalidLicense(
            f"the licence is {len(text):,} characters long; an SPDX expression may have {MAX_EXPRESSION_CHARS}: "
            "give a licence text a name of its own, LicenseRef-<name>, and write that"
        )
    if text.upper() in (NOASSERTION, NONE):
        return text.upper()
    parsed = _parse(text)
    spelling: dict[str, str] = {}
    for key in _licensing().unknown_license_keys(parsed):
        reference = _REFERENCE.fullmatch(key)
        if reference is None:
            raise InvalidLicense(_unknown_id(key, text))
        document, document_name, name = reference.groups()
        spelling[key] = f"DocumentRef-{document_name}:LicenseRef-{name}" if document else f"LicenseRef-{name}"
    if any(written != canonical for written, canonical in spelling.items()):
        for written, canonical in spelling.items():
            text = re.sub(rf"(?<![\w.:-]){re.escape(written)}(?![\w.:-])", canonical, text)
        parsed = _parse(text)
    return str(parsed.simplify().render("{symbol.key}"))


@lru_cache(maxsize=8192)
def all_licenses(expressions: frozenset[str]) -> str:
    """The normalised expression that asks for all of these at once (AND). One that says NOASSERTION or NONE makes the
    whole unsaid, since SPDX lets these stand alone only: the answer is then NOASSERTION, or NONE if that is said.

    Raises `InvalidLicense`.
    """
    for alone in (NONE, NOASSERTION):
        if alone in expressions:
            return alone
    parsed = [_parse(expression) for expression in sorted(expressions)]
    if len(parsed) == 1:
        return str(parsed[0].simplify().render("{symbol.key}"))
    return str(_licensing().AND(*parsed).simplify().render("{symbol.key}"))


def _parse(text: str) -> "Expression":
    from license_expression import ExpressionError

    problem = _syntax_problem(text)
    if problem is None:
        try:
            return _licensing().parse(text, strict=True)
        except ExpressionError as error:
            problem = str(error).strip().rstrip(".")
    raise InvalidLicense(
        f"{_shown(text)} is not an SPDX licence expression ({problem}): write ids such as CC-BY-4.0 or "
        f"LicenseRef-<name>, joined by AND, OR, WITH and parentheses{_suggestion(text)}"
    )


def _syntax_problem(text: str) -> str | None:
    """What is wrong with the order of ids, operators and parentheses; None where it is right.

    Looked at before the library sees the text: on "()" or "( AND MIT" its parser fails by IndexError or assertion.
    """
    depth, previous = 0, "the beginning"
    wants_id = True
    for token in re.findall(r"[()]|[^()\s]+", text):
        is_operator = token.upper() in ("AND", "OR", "WITH")
        if token == "(":
            depth += 1
        elif token == ")":
            depth -= 1
        if depth > _MAX_DEPTH:
            return f"more than {_MAX_DEPTH} parentheses deep"
        if depth < 0:
            return "a ')' without its '('"
        if wants_id and (is_operator or token == ")"):
            return f"no id between {previous} and {token!r}"
        if not wants_id and not is_operator and token != ")":
            return f"neither AND, OR nor WITH between {previous} and {token!r}"
        wants_id = is_operator or token == "("
        previous = repr(token)
    if wants_id:
        return f"no id after {previous}"
    return None if depth == 0 else "a '(' without its ')'"


def _unknown_id(key: str, text: str) -> str:
    inside = "" if key == text else f" in {_shown(text)}"
    return (
        f"{_shown(key)}{inside} is not an SPDX licence id: write one from https://spdx.org/licenses/, or "
        f"LicenseRef-<name> (letters, digits, '.' and '-') for a licence that has none{_suggestion(key)}"
    )


def _suggestion(text: str) -> str:
    lowered = text.lower()
    if lowered in _OFTEN_MEANT:
        return f"; did you mean {_OFTEN_MEANT[lowered]}?"
    near = difflib.get_close_matches(lowered.replace(" ", "-"), _categories(), n=1, cutoff=0.75)
    if not near or near[0] == lowered:
        return ""
    return f"; did you mean {_licensing().parse(near[0]).key}?"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "…")


def fold_license(
    expression: str,
    single: Callable[[str], T],
    every: Callable[[Sequence[T]], T],
    either: Callable[[Sequence[T]], T],
) -> T:
    """Evaluate an expression: `single` for an id (`GPL-2.0-only WITH …` is asked as its licence, since an exception
    only permits more), `every` for AND, `either` for OR. NOASSERTION and NONE are single ids.

    Raises `InvalidLicense`.
    """
    if expression in (NOASSERTION, NONE):
        return single(expression)

    def walk(node: "Expression") -> T:
        operator = getattr(node, "operator", None)
        if operator is None:
            return single(str(getattr(node, "license_symbol", node).key))
        parts = [walk(part) for part in node.args]
        return every(parts) if str(operator).strip() == "AND" else either(parts)

    return walk(_parse(expression))


@dataclass(frozen=True, slots=True)
class LicenseTraits:
    """What an expression asks. Each set holds the ids that ask it, so that a message can name them; empty: not asked.

    `unknown`: ids whose text is not understood here (NOASSERTION, a private `LicenseRef-`, proprietary licences).
    `unlicensed`: NONE was said, so nothing is granted. `use_restrictions`: a use policy travels along (RAIL).
    """

    non_commercial: frozenset[str] = frozenset()
    no_derivatives: frozenset[str] = frozenset()
    share_alike: frozenset[str] = frozenset()
    attribution: frozenset[str] = frozenset()
    use_restrictions: frozenset[str] = frozenset()
    unknown: frozenset[str] = frozenset()
    public_domain: bool = False
    unlicensed: bool = False

    def joined(self, other: "LicenseTraits") -> "LicenseTraits":
        """Both must be kept: the worse of each."""
        return LicenseTraits(
            non_commercial=self.non_commercial | other.non_commercial,
            no_derivatives=self.no_derivatives | other.no_derivatives,
            share_alike=self.share_alike | other.share_alike,
            attribution=self.attribution | other.attribution,
            use_restrictions=self.use_restrictions | other.use_restrictions,
            unknown=self.unknown | other.unknown,
            public_domain=self.public_domain and other.public_domain,
            unlicensed=self.unlicensed or other.unlicensed,
        )

    def burden(self) -> tuple[int, ...]:
        """Sorts from light to heavy; OR takes the lightest."""
        return (
            int(self.unlicensed),
            len(self.unknown),
            len(self.no_derivatives),
            len(self.non_commercial),
            len(self.use_restrictions),
            len(self.share_alike),
            len(self.attribution),
            int(not self.public_domain),
        )


@lru_cache(maxsize=8192)
def license_traits(expression: str) -> LicenseTraits:
    """What a normalised expression asks: AND keeps everything, OR takes the alternative that asks least.

    "Least" is `LicenseTraits.burden`, whatever the use: first what is understood, then what permits changes, then
    what permits commerce, then what asks for the fewest conditions. Raises `InvalidLicense`.
    """
    return fold_license(expression, _traits_of, _every, _lightest)


def _every(parts: Sequence[LicenseTraits]) -> LicenseTraits:
    result = parts[0]
    for part in parts[1:]:
        result = result.joined(part)
    return result


def _lightest(parts: Sequence[LicenseTraits]) -> LicenseTraits:
    return min(parts, key=LicenseTraits.burden)  # the first of equals; operands are in a fixed order


# Creative Commons with its ports (CC-BY-NC-SA-2.0-FR …), in SPDX's and in ScanCode's spelling.
_CREATIVE_COMMONS = re.compile(
    r"(?:licenseref-scancode-)?cc((?:-(?:by|nc|nd|sa))+)-\d\.\d(?:-[a-z]+)?", re.IGNORECASE
)
_NON_COMMERCIAL = re.compile(
    r"polyform-noncommercial-.*|ncgl-uk-.*|licenseref-scancode-dl-de-by-nc-1-0-(?:de|en)", re.IGNORECASE
)
_RAIL = re.compile(r"licenseref-scancode-big(?:science|code)-(?:open-)?rail.*", re.IGNORECASE)
# Copyright is waived, or nothing is asked of a copy: no attribution, no notice.
_ASKS_NOTHING = frozenset({"0bsd", "mit-0", "dl-de-zero-2.0"})


def _traits_of(id_: str) -> LicenseTraits:
    one, none = frozenset({id_}), frozenset[str]()
    lowered = id_.lower()
    if id_ == NONE:
        return LicenseTraits(unlicensed=True)
    creative = _CREATIVE_COMMONS.fullmatch(lowered)
    if creative is not None:
        elements = creative.group(1).split("-")
        return LicenseTraits(
            non_commercial=one if "nc" in elements else none,
            no_derivatives=one if "nd" in elements else none,
            share_alike=one if "sa" in elements else none,
            attribution=one if "by" in elements else none,
        )
    if lowered in _ASKS_NOTHING:
        return LicenseTraits(public_domain=True)
    if _NON_COMMERCIAL.fullmatch(lowered):
        return LicenseTraits(non_commercial=one, attribution=one)
    if _RAIL.fullmatch(lowered):
        return LicenseTraits(use_restrictions=one, attribution=one)
    match _categories().get(lowered):
        case "Public Domain":
            return LicenseTraits(public_domain=True)
        case "Permissive":
            return LicenseTraits(attribution=one)
        case "Copyleft" | "Copyleft Limited":
            return LicenseTraits(share_alike=one, attribution=one)
        case _:  # proprietary, source-available, unstated, or an id of the user's own: a person must read it
            return LicenseTraits(unknown=one)
