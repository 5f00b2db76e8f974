"""The policy, the audit log, lineage, takedowns and signatures on the command line."""

import json
from pathlib import Path
from typing import Any

from app.exporters import signing
from tests.fixtures.service import Service

from .conftest import Retort

PROMPTS = "".join(
    json.dumps({"prompt": f"What is {i}?", "license": "CC-BY-4.0", "source": "a book" if i == 1 else "ours"})
    + "\n"
    for i in range(3)
)


def done(retort: Retort, tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "prompts.jsonl"
    file.write_text(PROMPTS)
    sent = retort("submit", file, "--teacher", "t", "--watch", "--json")
    assert sent.code == 0, sent.err
    made: dict[str, Any] = sent.json
    return made


def test_reading_checking_and_overriding(retort: Retort, service: Service) -> None:
    assert "llama-3.3" in retort("policy", "show").out
    assert "3.3(e)" in retort("policy", "show", "openai-services").out
    assert retort("policy", "show", "nothing").code == 5
    assert retort("policy", "check", "t", "--license", "CC-BY-4.0").code == 0
    refused = retort("policy", "check", "t", "--license", "CC-BY-NC-4.0", "--commercial")
    assert refused.code == 4
    assert "CC-BY-NC-4.0 permits non-commercial use only" in refused.out
    assert retort("policy", "check", "t", "--license", "CC-BY").code == 2
    said = ("--who", "dana@example.org", "--why", "our own", "--json")
    assert retort("policy", "override", "--model", "our/*", "--terms", "nothing", *said).code == 2
    made = retort("policy", "override", "--model", "our/*", "--terms", "apache-2.0-weights", *said).json
    assert made["override"]["since"]
    assert made["id"] in retort("policy", "overrides").out
    gone = retort("policy", "revoke", made["id"], "--why", "sold", "--json").json
    assert gone["revoked_why"] == "sold"


def test_decisions_lineage_takedown_and_audit(retort: Retort, tmp_path: Path) -> None:
    job = done(retort, tmp_path)
    decision = job["policy"]["decision"]
    assert decision in retort("policy", "decisions", "--about", job["id"]).out
    assert "CC-BY-4.0" in retort("policy", "decision", decision).out
    replayed = retort("policy", "replay", decision)
    assert (replayed.code, replayed.out) == (0, "Reproduced, byte for byte.\n")

    to = tmp_path / "out"
    exported = retort("export", job["id"], "--to", to, "--json").json
    row = retort("lineage", "row", f"{job['id']}/0/1/0/0")
    for word in ("a book", "CC-BY-4.0", "scripted", decision, exported["id"]):
        assert word in row.out
    assert exported["id"] in retort("lineage", "exports", "--teacher", "t").out
    prompt_set = job["prompt_set"]
    found = retort("lineage", "exports", "--prompt-set", prompt_set, "--prompt", 1, "--json").json
    assert [one["id"] for one in found["exports"]] == [exported["id"]]
    assert retort("lineage", "exports").code == 2
    assert retort("lineage", "row", "nonsense").code == 4

    said = ("--prompt-set", prompt_set, "--prompt", 1, "--who", "rights", "--why", "a letter")
    assert exported["id"] in retort("takedown", "order", *said, "--dry-run").out
    taken = retort("takedown", "order", *said, "--json").json
    assert (taken["status"], taken["n_prompts"], taken["n_completions"]) == ("completed", 1, 1)
    assert [one["id"] for one in taken["tainted_exports"]] == [exported["id"]]
    assert "still there" in retort("takedown", "show", taken["id"]).out
    assert taken["id"] in retort("takedown", "list").out
    assert retort("takedown", "order", "--who", "x", "--why", "y").code == 2
    assert f"removed by {taken['id']}" in retort("lineage", "row", f"{job['id']}/0/1/0/0").out

    assert "takedown.order" in retort("audit", "list", "--about", taken["id"]).out
    head = retort("audit", "head").out.strip()
    verified = retort("audit", "verify", "--anchor", head, "--manifest", to / "manifest.json", "--json")
    assert (verified.code, verified.json["anchors_checked"]) == (0, 2)
    wrong = f"{head.partition(':')[0]}:{'0' * 64}"
    assert retort("audit", "verify", "--anchor", wrong).code == 1


def test_an_export_is_verified_without_a_service(
    alone: Retort, retort: Retort, service: Service, tmp_path: Path
) -> None:
    """The service's workers sign with the key in its data folder; whoever verifies has the public half alone."""
    job = done(retort, tmp_path)
    to, public = tmp_path / "out", tmp_path / "signing.pub"
    public.write_bytes(signing.public_key_of((service.folder / "signing.key").read_bytes()))
    assert retort("export", job["id"], "--to", to).code == 0
    whole = alone("verify", to)
    assert (whole.code, "no signature was checked" in whole.out) == (0, True)
    assert alone("verify", to, "--json").json["signature_checked"] is False
    signed = alone("verify", to, "--public-key", public, "--json")
    assert (signed.code, signed.json["signature_checked"]) == (0, True)
    assert signed.json["signed_by"] == signing.key_id(public.read_bytes())

    made = alone("keys", "sign-init", "--to", tmp_path / "keys" / "signing.key", "--json").json
    assert Path(made["private_key"]).stat().st_mode & 0o777 == 0o600
    assert alone("keys", "sign-init", "--to", tmp_path / "keys" / "signing.key").code == 4
    stranger = alone("verify", to, "--public-key", made["public_key"])
    assert (stranger.code, "not signed by this key" in stranger.err) == (1, True)

    data = to / "train-00000.jsonl"
    content = bytearray(data.read_bytes())
    content[10] ^= 1
    data.write_bytes(content)
    for words in ((), ("--public-key", public)):
        damaged = alone("verify", to, *words)
        assert (damaged.code, "train-00000.jsonl is not what the manifest says" in damaged.err) == (1, True)
    data.unlink()
    assert "is missing" in alone("verify", to).err
    (to / "manifest.dsse.json").unlink()
    unsigned = alone("verify", to, "--public-key", public)
    assert (unsigned.code, "manifest.dsse.json" in unsigned.err) == (1, True)
