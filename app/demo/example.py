"""One completion for a person to enjoy: prompt, reasoning, answer, and what the teacher nearly said instead."""

import math
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.client import RetortClient
from app.teachers.embedded import token_texts

_TOKENS, _ALTERNATIVES = 8, 4


def show_example(api: RetortClient, job: dict[str, Any], console: Console) -> None:
    """Print the best example: a reference answer that was met, a trace, and little text."""
    references = {
        prompt["number"]: str(prompt["reference"])
        for prompt in api.pages(f"/v1/prompt-sets/{job['prompt_set']}/prompts")
        if prompt.get("reference") is not None
    }
    rows = [row for row in api.completions(job["id"], include="prompt") if row["status"] == "completed"]
    if not rows:
        console.print("No completion succeeded; `retort jobs failures` says why.")
        return
    row = min(rows, key=lambda row: _charm(row, references.get(row["prompt_number"])))
    with_tokens = next(
        found
        for found in api.completions(job["id"], include="tokens", prompt_number=row["prompt_number"])
        if found["sample_index"] == row["sample_index"]
    )
    console.rule("[bold]one example")
    for message in row["messages"]:
        console.print(f"[bold]{message['role']}[/]: {escape(str(message['content']))}")
    if row["reasoning"]:
        cut = " (cut off)" if row["reasoning_truncated"] else ""
        console.print(
            f"\n[bold]reasoning[/] ({row['reasoning_source']}{cut}): [dim]{escape(row['reasoning'])}[/]"
        )
    console.print(f"\n[bold]answer[/]: {escape(row['answer'])}\n")
    if with_tokens["tokens"] is not None:
        console.print(_table(with_tokens["tokens"]))


def _charm(row: dict[str, Any], reference: str | None) -> tuple[bool, bool, bool, int]:
    """Smaller is nicer: the reference is met, there is a whole trace, the answer is there and all of it is short."""
    met = reference is not None and reference.lower() in (row["answer"] or "").lower()
    whole = bool(row["reasoning"]) and not row["reasoning_truncated"] and row["finish_reason"] == "stop"
    length = len(row["answer"] or "") + len(row["reasoning"] or "")
    return (not met, not whole, not row["answer"], abs(length - 300))


def _table(tokens: dict[str, Any]) -> Table:
    shown = [i for i, drawn in enumerate(tokens["sampled"]) if drawn][:_TOKENS]
    wanted = {tokens["token_ids"][i] for i in shown}
    wanted |= {
        identifier
        for i in shown
        for identifier in tokens["topk_ids"][i][: _ALTERNATIVES + 1]
        if identifier >= 0
    }
    text = token_texts(sorted(wanted))
    table = Table(title=f"the first {len(shown)} tokens and what nearly stood there", title_justify="left")
    table.add_column("token")
    table.add_column("probability", justify="right")
    table.add_column("likeliest alternatives")
    for i in shown:
        own = tokens["token_ids"][i]
        others = [
            f"{_shown(text[identifier])} {math.exp(lp):.0%}"
            for identifier, lp in zip(tokens["topk_ids"][i], tokens["topk_logprobs"][i], strict=True)
            if identifier >= 0 and identifier != own and lp is not None
        ]
        probability = tokens["sampled_logprob"][i]
        table.add_row(
            _shown(text[own]),
            "–" if probability is None else f"{math.exp(probability):.0%}",
            "   ".join(others[:_ALTERNATIVES]),
        )
    return table


def _shown(text: str) -> str:
    return escape(repr(text)[1:-1].replace(" ", "␣") or "∅")
