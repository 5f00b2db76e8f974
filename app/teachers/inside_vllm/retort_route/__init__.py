"""Token ids in, token columns out: a route of our own inside a vLLM server. docs/compact-route.md describes it.

vLLM loads this package with `--middleware retort_route.CompactRoute`, in an environment where nothing else of ours is
installed: standard library, numpy and vLLM only, and vLLM only inside functions, since our own side takes the wire
format from here. `retort vllm-serve` puts the folder that holds this package on the server's PYTHONPATH.

A middleware runs outside vLLM's own authentication and request validation, so both are done here.

wire.py        the bytes of an answer
request.py     the fields of a request, and what becomes of them in the engine
about.py       what this server is
middleware.py  the paths, the key, the size of a body, a client that leaves
"""

from .middleware import CompactRoute as CompactRoute
