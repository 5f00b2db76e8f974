import re

import pytest

from app.domain.licences import normalise_license
from app.policy.lattice import Answer, Kind
from app.policy.routes import HOSTS, MODELS
from app.policy.terms import FLAGS, POLICY_VERSION, TERMS, Terms, policy_digest

# Decisions are stored with the version and this digest of the data that made them: whoever changes the data gives it a
# new version, and adds it here.
DIGESTS = {"2026-11-25.1": "1df4fb0b64a5fdef666f5a62d90a2cb78c97c286993aa540bca77c4c81ba42e9"}


def test_changed_terms_have_a_new_version() -> None:
    assert DIGESTS[POLICY_VERSION] == policy_digest()


@pytest.mark.parametrize("terms", TERMS.values(), ids=lambda terms: terms.id)
def test_every_limit_and_every_duty_names_its_provision(terms: Terms) -> None:
    for flag in FLAGS:
        if getattr(terms.permissions, flag) is not Answer.YES:
            assert terms.provision_about(flag) is not None, flag
    if terms.permissions.research_only:
        assert terms.provision_about("research") is not None
    for obligation in terms.permissions.obligations:
        assert terms.provision_about(obligation.kind) is not None, obligation.kind
    assert terms.proceed


@pytest.mark.parametrize("terms", TERMS.values(), ids=lambda terms: terms.id)
def test_only_what_was_read_is_quoted(terms: Terms) -> None:
    for provision in terms.provisions:
        document = provision.document
        assert provision.paraphrase
        if provision.clause is not None:
            assert document.sha256 is not None
            assert re.fullmatch(r"[0-9a-f]{64}", document.sha256)
            assert document.commit is not None
            assert re.fullmatch(r"[0-9a-f]{40}", document.commit)
            assert provision.clause == " ".join(provision.clause.split())
        if document.effective is not None:
            assert document.effective <= document.read


@pytest.mark.parametrize("terms", TERMS.values(), ids=lambda terms: terms.id)
def test_licence_ids_are_spelt_as_spdx_spells_them(terms: Terms) -> None:
    if terms.spdx is None:
        assert not terms.permissions.obligations or terms.permissions.train is Answer.YES
    else:
        assert normalise_license(terms.spdx) == terms.spdx


def test_a_name_that_is_asked_is_in_the_quoted_clause() -> None:
    asking = [
        terms for terms in TERMS.values() if any(o.kind is Kind.NAMING for o in terms.permissions.obligations)
    ]
    assert len(asking) == 6
    for terms in asking:
        provision = terms.provision_about(Kind.NAMING)
        value = next(o.value for o in terms.permissions.obligations if o.kind is Kind.NAMING)
        assert provision is not None
        assert provision.clause is not None
        assert f"“{value}” at the beginning" in provision.clause


def test_no_owner_is_a_wildcard_and_no_glob_stands_twice() -> None:
    globs = [glob for row in MODELS for glob in row.models]
    assert len({glob.lower() for glob in globs}) == len(globs)
    for glob in globs:
        owner, slash, rest = glob.rpartition("/")
        assert not slash or not re.search(r"[*?\[]", owner), glob
        assert re.match(r"[\w.-]", rest), glob


def test_host_names_belong_to_one_route() -> None:
    names = [name for row in HOSTS.values() for name in row.hostnames]
    assert len(names) == len(set(names))
