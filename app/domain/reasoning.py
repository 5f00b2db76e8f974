"""Where a reasoning trace ends and the answer begins."""

from dataclasses import dataclass

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Reasoned:
    """A text split into its trace and its answer. `truncated`: the trace never closed."""

    reasoning: str | None
    answer: str
    truncated: bool = False


def split_reasoning(text: str, begun: bool = False) -> Reasoned:
    """Split `<think>…</think>answer`. A trace that was cut off stays reasoning and is marked truncated.

    `begun`: the turn was prefilled with `<think>` (or its template opens one), so that the text starts inside it.
    A closing tag without an opening one means the same: several chat templates put the opening tag in the prompt.
    """
    body = text.lstrip()
    if body.startswith(OPEN):
        body, begun = body[len(OPEN) :], True
    elif not begun and CLOSE not in body:
        return Reasoned(None, text)
    trace, close, answer = body.partition(CLOSE)
    if not close:
        return Reasoned(trace.strip("\n"), "", truncated=True)
    return Reasoned(trace.strip("\n"), answer.lstrip("\n"))


def reasoning_of(message: dict[str, object]) -> tuple[str | None, str]:
    """(reasoning, content) of a chat message: `reasoning`, `reasoning_content`, thinking parts, or None and the text.

    `<think>` text in the content is left there: `split_reasoning` knows it.
    """
    trace, text = _parts_of(message.get("content"))
    for name in ("reasoning", "reasoning_content"):
        told = message.get(name)
        if isinstance(told, str) and told:
            return told, text
    return trace, text


def _parts_of(content: object) -> tuple[str | None, str]:
    """Content as a string, or as a list of parts of type `text` and `thinking` (Mistral)."""
    if not isinstance(content, list):
        return None, content if isinstance(content, str) else ""
    traces, texts = [], []
    for part in content:
        if not isinstance(part, dict):
            continue
        if part.get("type") == "thinking":
            inner = part.get("thinking")
            traces.append(_parts_of(inner)[1])
        elif isinstance(part.get("text"), str):
            texts.append(str(part["text"]))
    return "".join(traces) or None, "".join(texts)
