"""Signed manifests: verified with the public key alone; whatever is changed is found."""

import base64
import json
from typing import Any

import pytest

from app.errors import InvalidInput, InvalidSignature
from app.exporters import signing

PRIVATE = signing.new_private_key()
PUBLIC = signing.public_key_of(PRIVATE)
FILES = [
    {"name": "train-00000.jsonl", "sha256": "ab" * 32},
    {"name": "STUDENT_NOTICE.md", "sha256": "cd" * 32},
]
MANIFEST = json.dumps({"export": "exp_1", "n_rows": 2, "files": FILES}).encode()
ENVELOPE = signing.sign(MANIFEST, PRIVATE)


def test_every_file_of_the_manifest_is_signed() -> None:
    signed = signing.verify(ENVELOPE, MANIFEST, PUBLIC)
    assert {name: signed[name] for name in ("train-00000.jsonl", "STUDENT_NOTICE.md")} == {
        file["name"]: file["sha256"] for file in FILES
    }
    assert set(signed) == {"manifest.json", "train-00000.jsonl", "STUDENT_NOTICE.md"}


def test_it_is_an_in_toto_statement_in_a_dsse_envelope() -> None:
    opened: dict[str, Any] = json.loads(ENVELOPE)
    assert opened["payloadType"] == "application/vnd.in-toto+json"
    statement = json.loads(base64.b64decode(opened["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicate"]["export"] == "exp_1"
    assert opened["signatures"][0]["keyid"] == signing.key_id(PUBLIC)


def test_the_signature_is_that_of_the_specification() -> None:
    """By hand, without the library: PAE of DSSE v1, Ed25519."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    opened = json.loads(ENVELOPE)
    payload = base64.b64decode(opened["payload"])
    kind = opened["payloadType"].encode()
    pae = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    key = load_pem_public_key(PUBLIC)
    assert isinstance(key, Ed25519PublicKey)
    key.verify(base64.b64decode(opened["signatures"][0]["sig"]), pae)


@pytest.mark.parametrize("what", ["manifest", "envelope"])
def test_one_flipped_bit_of_any_byte_is_found(what: str) -> None:
    content = MANIFEST if what == "manifest" else ENVELOPE
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1
        envelope, manifest = (ENVELOPE, bytes(flipped)) if what == "manifest" else (bytes(flipped), MANIFEST)
        with pytest.raises(InvalidInput):
            signing.verify(envelope, manifest, PUBLIC)


def test_another_key_does_not_do() -> None:
    other = signing.public_key_of(signing.new_private_key())
    with pytest.raises(InvalidSignature, match="not signed by this key"):
        signing.verify(ENVELOPE, MANIFEST, other)


@pytest.mark.parametrize(
    "wrong", [b"", b"{}", b"[]", b"null", b'{"payload": 1, "payloadType": "x", "signatures": []}']
)
def test_what_is_no_envelope_is_told(wrong: bytes) -> None:
    with pytest.raises(InvalidSignature):
        signing.verify(wrong, MANIFEST, PUBLIC)


def test_what_is_no_key_is_told() -> None:
    with pytest.raises(InvalidInput, match="no public key"):
        signing.verify(ENVELOPE, MANIFEST, b"not a key")
    with pytest.raises(InvalidInput, match="no private key"):
        signing.sign(MANIFEST, PUBLIC)
