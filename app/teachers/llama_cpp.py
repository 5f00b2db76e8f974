"""llama.cpp in this process: its server engine from `xllamacpp`, spoken to over loopback with a key of its own.

HTTP rather than the in-process functions: a call that is cancelled closes its connection, and the engine stops
generating for nobody; a function call could not be taken back.
"""

import ctypes
import os
import secrets
import threading
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from app.errors import TeacherUnavailable

SLOTS = 8  # calls that are generated at the same time
CONTEXT = 2048  # tokens per slot, prompt and answer together
# Its threads wait for each other by spinning: on two cores that other programs use too, two threads were ten times
# slower than one, and burnt eight times the CPU.
THREADS = max(1, min(4, (os.cpu_count() or 1) // 2))


@dataclass(frozen=True)
class RunningEngine:
    """Where the engine listens. It lives as long as the process."""

    url: str
    key: str


_lock = threading.Lock()
_running: dict[Path, RunningEngine] = {}


def engine_version() -> str | None:
    """None where no wheel of xllamacpp exists for this machine."""
    try:
        return f"llama.cpp xllamacpp-{version('xllamacpp')}"
    except PackageNotFoundError:
        return None


def running(model: Path) -> RunningEngine:
    """The engine with this model, loaded at the first call (about a second). Blocks; safe from any thread."""
    with _lock:
        if model not in _running:
            _running[model] = _load(model, secrets.token_urlsafe(32))
        return _running[model]


def _load(model: Path, key: str) -> RunningEngine:
    try:
        import xllamacpp
    except ImportError as error:
        raise TeacherUnavailable(f"the embedded engine cannot be loaded on this machine: {error}") from error
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * CONTEXT
    params.kv_unified = False
    for threads in (params.cpuparams, params.cpuparams_batch):
        threads.n_threads = THREADS
    params.n_threads_http = 4 * SLOTS
    params.n_gpu_layers = 0
    params.endpoint_metrics = True
    params.cache_ram_mib = 0
    params.warmup = False
    params.ui = False
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [key]
    params.verbosity = -1
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        raise TeacherUnavailable(f"the embedded model cannot be loaded: {error}") from error
    # Never destroyed: its destructor waits for its threads, which at the interpreter's end crash or hang.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(server))
    return RunningEngine(str(server.listening_address), key)
