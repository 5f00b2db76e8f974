"""What this server is: for the probe and for the provenance of what it makes."""

import hashlib
import logging
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from .request import Refused
from .wire import VERSION

log = logging.getLogger("retort_route")


def about(engine: Any) -> dict[str, Any]:
    """What a teacher's provenance needs to know of this server. Reads parts of the weight files: not in a hot path."""
    import vllm
    from vllm import SamplingParams

    if "flat_logprobs" not in SamplingParams.__struct_fields__:
        raise Refused(501, f"vLLM {vllm.__version__} has no flat logprobs")
    model, whole = engine.model_config, engine.vllm_config
    most = model.max_logprobs
    reasoning = getattr(whole, "reasoning_config", None)
    revision = model.revision or getattr(model.hf_config, "_commit_hash", None)
    return {
        "version": VERSION,
        "engine": "vllm",
        "engine_version": vllm.__version__,
        "fingerprint": fingerprint(engine),
        "model": model.model,
        "revision": revision,
        "max_model_len": model.max_model_len,
        "vocab_size": model.get_vocab_size(),
        "max_logprobs": model.get_vocab_size() if most == -1 else most,
        "logprobs_mode": str(getattr(model.logprobs_mode, "value", model.logprobs_mode)),
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": None if model.quantization is None else str(model.quantization),
        "priority": str(getattr(whole.scheduler_config, "policy", "fcfs")) == "priority",
        "reasoning_end_ids": getattr(reasoning, "reasoning_end_token_ids", None),
        "hardware": _hardware(),
        "weights_sha256": weights_fingerprint(Path(model.model)),
        "python": sys.version.split()[0],
    }


def weights_fingerprint(folder: Path) -> str | None:
    """SHA-256 over names, sizes and seventeen blocks of 64 KiB of each weight file; None for a model on a hub.

    Two sets of weights that differ by any training differ in it; it takes milliseconds a file.
    """
    files = sorted(
        path for path in folder.glob("*") if path.suffix in (".safetensors", ".bin", ".gguf", ".pt")
    )
    if not folder.is_dir() or not files:
        return None
    digest = hashlib.sha256()
    block = 65_536
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for part in range(17):
                file.seek(max(0, size - block) * part // 16)
                digest.update(file.read(block))
    return digest.hexdigest()


def _hardware() -> str | None:
    from vllm.platforms import current_platform

    try:
        return str(current_platform.get_device_name())
    except (NotImplementedError, RuntimeError):
        return None


@lru_cache(maxsize=4)
def fingerprint(engine: Any) -> str | None:
    """What vLLM's own routes call `system_fingerprint`: a hash of the configuration, not of the weights."""
    try:
        from vllm.entrypoints.serve.utils.fingerprint import get_system_fingerprint

        found: str | None = get_system_fingerprint(engine.vllm_config)
    except Exception:  # it moved in another release, or cannot be computed: vLLM itself goes on without it
        log.warning("no system fingerprint", exc_info=True)
        return None
    return found
