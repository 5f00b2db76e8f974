import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.licences import (
    MAX_EXPRESSION_CHARS,
    LicenseTraits,
    all_licenses,
    fold_license,
    license_traits,
    normalise_license,
)
from app.errors import InvalidLicense


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("apache-2.0", "Apache-2.0"),
        ("  mit ", "MIT"),
        ("GPL-2.0+", "GPL-2.0-or-later"),
        ("mit or gpl-2.0+", "GPL-2.0-or-later OR MIT"),
        ("MIT AND MIT", "MIT"),
        ("CC-BY-4.0 and odc-by-1.0", "CC-BY-4.0 AND ODC-By-1.0"),
        ("ODC-By-1.0 AND CC-BY-4.0", "CC-BY-4.0 AND ODC-By-1.0"),
        ("MIT OR (Apache-2.0 AND MIT)", "MIT"),
        ("MIT AND\n(Apache-2.0 OR CC0-1.0)", "MIT AND (Apache-2.0 OR CC0-1.0)"),
        ("gpl-2.0 with classpath-exception-2.0", "GPL-2.0-only WITH Classpath-exception-2.0"),
        ("licenseref-Acme-1", "LicenseRef-Acme-1"),
        ("licenseref-a AND licenseref-a.b", "LicenseRef-a AND LicenseRef-a.b"),
        ("documentref-d1:licenseref-x", "DocumentRef-d1:LicenseRef-x"),
        ("LicenseRef-scancode-llama-3.1-license-2024", "LicenseRef-scancode-llama-3.1-license-2024"),
        ("noassertion", "NOASSERTION"),
        ("None", "NONE"),
    ],
)
def test_an_expression_is_spelt_one_way(written: str, canonical: str) -> None:
    assert normalise_license(written) == canonical
    assert normalise_license(canonical) == canonical


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("", "leave it out"),
        (" \n", "leave it out"),
        ("X" * (MAX_EXPRESSION_CHARS + 1), "513 characters"),
        ("CC-BY", "CC-BY-4.0 (name the version)"),
        ("cc-by-5.0", "did you mean CC-BY-"),
        ("Apache 2.0", "did you mean Apache-2.0"),
        ("apache-2.0.", "did you mean Apache-2.0"),
        ("odc-by", "did you mean ODC-By-1.0"),
        ("llama3.1", "LicenseRef-scancode-llama-3.1-license-2024"),
        ("other", "LicenseRef-<name>"),
        ("MIT AND foo", "'foo' in 'MIT AND foo'"),
        ("MIT OR NONE", "NONE, alone"),
        ("NOASSERTION AND MIT", "NOASSERTION, alone"),
        ("MIT Apache-2.0", "neither AND, OR nor WITH between 'MIT' and 'Apache-2.0'"),
        ("MIT, Apache-2.0", "not an SPDX licence expression"),
        ("MIT AND", "no id after 'AND'"),
        ("OR MIT", "no id between the beginning and 'OR'"),
        ("()", "no id between '(' and ')'"),
        ("(MIT", "a '(' without its ')'"),
        ("MIT)", "a ')' without its '('"),
        ("(" * 200 + "MIT" + ")" * 200, "parentheses deep"),
        ("Classpath-exception-2.0", "exception"),
        ("LicenseRef-a_b", "letters, digits, '.' and '-'"),
        ("LicenseRef-", "LicenseRef-<name>"),
    ],
)
def test_a_wrong_expression_says_what_is_wrong_and_how_to_mend_it(written: str, problem: str) -> None:
    with pytest.raises(InvalidLicense) as caught:
        normalise_license(written)
    assert problem in caught.value.detail


def ids(*names: str) -> frozenset[str]:
    return frozenset(names)


@pytest.mark.parametrize(
    ("expression", "traits"),
    [
        ("CC0-1.0", LicenseTraits(public_domain=True)),
        ("PDDL-1.0", LicenseTraits(public_domain=True)),
        ("MIT-0", LicenseTraits(public_domain=True)),
        ("MIT", LicenseTraits(attribution=ids("MIT"))),
        ("CC-BY-4.0", LicenseTraits(attribution=ids("CC-BY-4.0"))),
        ("ODC-By-1.0", LicenseTraits(attribution=ids("ODC-By-1.0"))),
        ("CC-BY-SA-3.0", LicenseTraits(share_alike=ids("CC-BY-SA-3.0"), attribution=ids("CC-BY-SA-3.0"))),
        ("ODbL-1.0", LicenseTraits(share_alike=ids("ODbL-1.0"), attribution=ids("ODbL-1.0"))),
        (
            "CDLA-Sharing-1.0",
            LicenseTraits(share_alike=ids("CDLA-Sharing-1.0"), attribution=ids("CDLA-Sharing-1.0")),
        ),
        ("CDLA-Permissive-2.0", LicenseTraits(attribution=ids("CDLA-Permissive-2.0"))),
        ("CC-BY-NC-4.0", LicenseTraits(non_commercial=ids("CC-BY-NC-4.0"), attribution=ids("CC-BY-NC-4.0"))),
        ("CC-BY-ND-4.0", LicenseTraits(no_derivatives=ids("CC-BY-ND-4.0"), attribution=ids("CC-BY-ND-4.0"))),
        (
            "CC-BY-NC-ND-3.0-DE",
            LicenseTraits(
                non_commercial=ids("CC-BY-NC-ND-3.0-DE"),
                no_derivatives=ids("CC-BY-NC-ND-3.0-DE"),
                attribution=ids("CC-BY-NC-ND-3.0-DE"),
            ),
        ),
        (
            "CC-BY-NC-SA-2.0-FR",
            LicenseTraits(
                non_commercial=ids("CC-BY-NC-SA-2.0-FR"),
                share_alike=ids("CC-BY-NC-SA-2.0-FR"),
                attribution=ids("CC-BY-NC-SA-2.0-FR"),
            ),
        ),
        (
            "LicenseRef-scancode-bigscience-rail-1.0",
            LicenseTraits(
                use_restrictions=ids("LicenseRef-scancode-bigscience-rail-1.0"),
                attribution=ids("LicenseRef-scancode-bigscience-rail-1.0"),
            ),
        ),
        ("NOASSERTION", LicenseTraits(unknown=ids("NOASSERTION"))),
        ("NONE", LicenseTraits(unlicensed=True)),
        ("LicenseRef-acme", LicenseTraits(unknown=ids("LicenseRef-acme"))),
        ("LicenseRef-scancode-unknown", LicenseTraits(unknown=ids("LicenseRef-scancode-unknown"))),
        (
            "LicenseRef-scancode-gemma-tou-2024-04-01",
            LicenseTraits(unknown=ids("LicenseRef-scancode-gemma-tou-2024-04-01")),
        ),
    ],
)
def test_what_a_licence_asks(expression: str, traits: LicenseTraits) -> None:
    assert normalise_license(expression) == expression
    assert license_traits(expression) == traits


def test_and_keeps_the_worst_of_all() -> None:
    traits = license_traits("CC-BY-NC-4.0 AND CC-BY-SA-4.0 AND CC0-1.0 AND LicenseRef-x")
    assert traits.non_commercial == ids("CC-BY-NC-4.0")
    assert traits.share_alike == ids("CC-BY-SA-4.0")
    assert traits.attribution == ids("CC-BY-NC-4.0", "CC-BY-SA-4.0")
    assert traits.unknown == ids("LicenseRef-x")
    assert not traits.public_domain


@pytest.mark.parametrize(
    ("expression", "same_as"),
    [
        ("CC-BY-NC-4.0 OR CC-BY-SA-4.0", "CC-BY-SA-4.0"),
        ("GPL-2.0-or-later OR MIT", "MIT"),
        ("CC0-1.0 OR MIT", "CC0-1.0"),
        ("LicenseRef-x OR CC-BY-NC-ND-4.0", "CC-BY-NC-ND-4.0"),
        ("(CC-BY-NC-4.0 OR CC-BY-4.0) AND MIT", "CC-BY-4.0 AND MIT"),
        ("(CC-BY-SA-4.0 AND MIT) OR CC-BY-NC-4.0", "CC-BY-SA-4.0 AND MIT"),
        ("GPL-2.0-only WITH Classpath-exception-2.0", "GPL-2.0-only"),
    ],
)
def test_or_takes_the_lightest_alternative(expression: str, same_as: str) -> None:
    assert license_traits(expression) == license_traits(same_as)


def test_fold_walks_the_whole_expression() -> None:
    text = fold_license(
        "(MIT OR CC0-1.0) AND CC-BY-4.0",
        str.lower,
        lambda p: f"all({','.join(p)})",
        lambda p: f"any({','.join(p)})",
    )
    assert text == "all(any(mit,cc0-1.0),cc-by-4.0)"


_TOKENS = st.sampled_from(
    [
        "MIT",
        "and",
        "OR",
        "WITH",
        "(",
        ")",
        "NOASSERTION",
        "NONE",
        "LicenseRef-x",
        "licenseref-Q",
        "GPL-2.0+",
        "+",
        ",",
        "é",
        "Classpath-exception-2.0",
        "CC-BY-4.0",
        "DocumentRef-z:LicenseRef-b",
        "a:b",
        "not",
        "unknown",
        "\n",
        "-",
        "&",
        "|",
        "!",
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(_TOKENS, max_size=12).map(" ".join) | st.text(max_size=30))
def test_any_text_is_normalised_once_and_for_all_or_refused(text: str) -> None:
    try:
        canonical = normalise_license(text)
    except InvalidLicense:
        return
    assert normalise_license(canonical) == canonical
    license_traits(canonical)


def test_a_million_rows_of_few_licences_cost_look_ups_only() -> None:
    licences = ["cc-by-4.0", "MIT", "apache-2.0 OR mit", "NOASSERTION"]
    for text in licences:
        license_traits(normalise_license(text))
    parsed = normalise_license.cache_info().misses, license_traits.cache_info().misses
    for _ in range(10_000):
        for text in licences:
            license_traits(normalise_license(text))
    assert (normalise_license.cache_info().misses, license_traits.cache_info().misses) == parsed


@pytest.mark.parametrize(
    ("expressions", "joined"),
    [
        (["MIT"], "MIT"),
        (["MIT OR CC0-1.0", "CC-BY-4.0"], "CC-BY-4.0 AND (CC0-1.0 OR MIT)"),
        (["CC-BY-4.0", "CC-BY-4.0 AND MIT"], "CC-BY-4.0 AND MIT"),
        (["NOASSERTION", "MIT"], "NOASSERTION"),
        (["NONE", "MIT", "NOASSERTION"], "NONE"),
    ],
)
def test_licences_that_bind_together(expressions: list[str], joined: str) -> None:
    assert all_licenses(frozenset(expressions)) == joined


def test_licences_that_bind_together_may_be_longer_than_what_a_row_may_say() -> None:
    many = {f"LicenseRef-a-rather-long-name-of-a-licence-{i}" for i in range(40)}
    nested = "(" * 32 + "MIT" + ")" * 32
    assert len(all_licenses(frozenset({*many, nested}))) > MAX_EXPRESSION_CHARS
