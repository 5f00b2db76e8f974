"""What engines' metrics say of their load, read as each engine spells it."""

import pytest

from app.teachers.pressure import Pressure, parse

VLLM = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="Qwen/Qwen3-8B"} 12.0
vllm:num_requests_running{engine="1",model_name="Qwen/Qwen3-8B"} 11.0
vllm:num_requests_waiting{engine="0",model_name="Qwen/Qwen3-8B"} 3.0
vllm:num_requests_waiting{engine="1",model_name="Qwen/Qwen3-8B"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 99.0
vllm:kv_cache_usage_perc{engine="0",model_name="Qwen/Qwen3-8B"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="Qwen/Qwen3-8B"} 0.75
vllm:num_preemptions_total{engine="0",model_name="Qwen/Qwen3-8B"} 4.0
vllm:num_preemptions_created{engine="0",model_name="Qwen/Qwen3-8B"} 1.78e+09
"""
SGLANG = """sglang:num_running_reqs{model_name="m"} 7.0
sglang:token_usage{model_name="m"} 0.28
sglang:num_queue_reqs{model_name="m"} 2.0
"""
LLAMA_CPP = "llamacpp:requests_processing 4\nllamacpp:requests_deferred 1\n"
TGI = "# TYPE tgi_queue_size gauge\ntgi_queue_size 5\ntgi_batch_current_size 32\n"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (VLLM, Pressure(23, 3, 4, 0.75)),
        (SGLANG, Pressure(7, 2, 0, 0.28)),
        (LLAMA_CPP, Pressure(4, 1, 0, None)),
        (TGI, Pressure(32, 5, 0, None)),
        ("process_cpu_seconds_total 12.0\n", None),
        ("vllm:num_requests_running 3\n", None),
        ('vllm:num_requests_running{engine="0"} NaN\nvllm:num_requests_waiting 1\n', None),
        ("", None),
    ],
    ids=["vllm", "sglang", "llama.cpp", "tgi", "another-server", "half-of-it", "not-a-number", "nothing"],
)
def test_engines_are_understood(text: str, wanted: Pressure | None) -> None:
    assert parse(text) == wanted
