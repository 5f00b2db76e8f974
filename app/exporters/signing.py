"""Signed manifests: an in-toto statement over every file of an export, in a DSSE envelope, by a key of one's own.

Nothing of it needs a network. Formats: https://github.com/in-toto/attestation (Statement v1) and
https://github.com/secure-systems-lab/dsse (v1).
"""

import hashlib
from typing import Final

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey  # type: ignore[attr-defined] # in its __init__

from app.errors import InvalidInput, InvalidSignature

SIGNATURE: Final = "manifest.dsse.json"
MANIFEST: Final = "manifest.json"
PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "urn:retort:export-manifest:v1"


def new_private_key() -> bytes:
    """A new Ed25519 key, PKCS#8 in PEM, without a password: the file's mode guards it."""
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_key_of(private_key: bytes) -> bytes:
    """The public half, PEM: what whoever verifies needs, and all that they need."""
    public = _private(private_key).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def key_id(public_key: bytes) -> str:
    """How envelopes name the key: a SHA-256 over it, hexadecimal."""
    return _public(public_key).keyid


def sign(manifest: bytes, private_key: bytes) -> bytes:
    """The envelope, JSON, to be put beside the manifest. The manifest's own list of files tells what else is signed."""
    signer = CryptoSigner(_private(private_key))
    envelope = Envelope(_statement(manifest), PAYLOAD_TYPE, {})
    envelope.sign(signer)
    return _spelt(envelope)


def _spelt(envelope: Envelope) -> bytes:
    return orjson.dumps(envelope.to_dict(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def verify(envelope: bytes, manifest: bytes, public_key: bytes) -> dict[str, str]:
    """Name → SHA-256 (hexadecimal) of every file that was signed with this manifest.

    Raises `InvalidSignature` where the envelope was not made by this key for exactly this manifest.
    """
    key = _public(public_key)
    try:
        opened = Envelope.from_dict(orjson.loads(envelope))
        opened.verify([key], threshold=1)
        changed = _spelt(opened) != envelope  # white space, or bits that base64 pads with
        statement = orjson.loads(opened.payload)
    except VerificationError as error:
        raise InvalidSignature(
            f"{SIGNATURE} was not signed by this key (its id is {key.keyid[:16]}…), or was changed since"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidSignature(f"{SIGNATURE} is no DSSE envelope: {error}") from error
    if changed:
        raise InvalidSignature(f"{SIGNATURE} was changed since it was written")
    try:
        expected = orjson.loads(_statement(manifest))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidSignature(f"{MANIFEST} is no manifest: {error}") from error
    if opened.payload_type != PAYLOAD_TYPE or statement != expected:
        raise InvalidSignature(f"{MANIFEST} is not the one that was signed")
    return {one["name"]: one["digest"]["sha256"] for one in statement["subject"]}


def _statement(manifest: bytes) -> bytes:
    told = orjson.loads(manifest)
    subjects = [{"name": MANIFEST, "digest": {"sha256": hashlib.sha256(manifest).hexdigest()}}]
    subjects += [{"name": file["name"], "digest": {"sha256": file["sha256"]}} for file in told["files"]]
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": subjects,
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            name: told.get(name) for name in ("export", "name", "format", "n_rows", "policy", "audit")
        },
    }
    return orjson.dumps(statement, option=orjson.OPT_SORT_KEYS)


def _private(pem: bytes) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"this is no private key in PEM without a password: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidInput("the signing key must be an Ed25519 key; `retort keys sign-init` makes one")
    return key


def _public(pem: bytes) -> SSlibKey:
    try:
        return SSlibKey.from_crypto(load_pem_public_key(pem))
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"this is no public key in PEM: {error}") from error
