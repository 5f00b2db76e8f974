"""One completion for a person to enjoy: prompt, reasoning, answer, and what the teacher nearly said instead."""

import math
import re

from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from app.client import RetortClient
from app.services.completions import CompletionOut, TokensView
from app.services.job_views import JobView
from app.teachers.embedded import token_texts

_TOKENS, _ALTERNATIVES, _BAR = 10, 4, 12
_LIKED_LENGTH = 160  # characters of trace and answer together
_NUMBER = re.compile(r"\d+(?:\.\d+)?")

_SPEAKERS = {"system": "System", "user": "Prompt", "assistant": "Before"}


def show_example(api: RetortClient, job: JobView, console: Console) -> None:
    """Print the most charming completion of the job, by rule."""
    references = {
        prompt.number: str(prompt.reference)
        for prompt in api.prompts(job.prompt_set)
        if prompt.reference is not None
    }
    rows = list(api.completions(job.id, status="completed", include="prompt"))
    row = min(rows, key=lambda row: charm(row, references.get(row.prompt_number)))
    reference = references.get(row.prompt_number)
    met = reference is not None and comes_to(row.answer, reference)
    console.print()
    console.print(Rule("one example" + (f", which comes to the expected answer: {reference}" if met else "")))
    for message in row.messages or ():
        _paragraph(console, _SPEAKERS.get(str(message["role"]), "Prompt"), str(message["content"]))
    if row.reasoning:
        cut = ", cut off" if row.reasoning_truncated else ""
        _paragraph(console, f"Reasoning ({row.reasoning_source}{cut})", row.reasoning, "italic")
    _paragraph(console, "Answer", row.answer or "", "bold green")
    tokens = next(
        found.tokens
        for found in api.completions(job.id, prompt_number=row.prompt_number, include="tokens", limit=100)
        if (found.teacher, found.sample_index) == (row.teacher, row.sample_index)
    )
    if tokens is not None:
        console.print()
        console.print(token_table(tokens))


def charm(row: CompletionOut, reference: str | None) -> tuple[bool, bool, bool, bool, int]:
    """Smaller is nicer: answer and trace both come to the reference, the trace ended by itself, all of it is short."""
    answer, trace = row.answer or "", row.reasoning or ""
    met = reference is not None and comes_to(answer, reference)
    reasoned = reference is not None and comes_to(trace, reference)
    whole = bool(trace) and not row.reasoning_truncated and row.finish_reason == "stop"
    return (not met, not reasoned, not whole, not answer, abs(len(answer) + len(trace) - _LIKED_LENGTH))


def comes_to(text: str | None, reference: str) -> bool:
    """Whether a text ends with this number as its last one, or says these words and denies nothing. By rule, so that
    nobody has to judge: a small model's answer can still be wrong.
    """
    if _NUMBER.fullmatch(reference):
        return _NUMBER.findall(text or "")[-1:] == [reference]
    said, denied = (
        re.search(rf"(?<!\w){word}(?!\w)", text or "", re.IGNORECASE)
        for word in (re.escape(reference), "(?:not|no)")
    )
    return said is not None and denied is None


def token_table(tokens: TokensView) -> Table:
    """The first tokens that were drawn, each with its probability and its likeliest alternatives."""
    shown = [i for i, drawn in enumerate(tokens.sampled) if drawn][:_TOKENS]
    text = token_texts(
        sorted({token for i in shown for token in (tokens.token_ids[i], *tokens.topk_ids[i]) if token >= 0})
    )
    made = Table(
        title=f"Its first {len(shown)} tokens, and what nearly stood there",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        header_style="dim",
    )
    made.add_column("token")
    made.add_column("probability", min_width=_BAR + 5)
    made.add_column("likeliest alternatives", overflow="ellipsis", no_wrap=True)
    for i in shown:
        own = tokens.token_ids[i]
        others = Text()
        pairs = zip(tokens.topk_ids[i], tokens.topk_logprobs[i], strict=True)
        alternatives = [
            (token, math.exp(lp)) for token, lp in pairs if token not in (own, -1) and lp is not None
        ]
        for token, probability in alternatives[:_ALTERNATIVES]:
            others.append(visible(text[token]))
            others.append(f" {percent(probability)}   ", "dim")
        logprob = tokens.sampled_logprob[i]
        made.add_row(
            Text(visible(text[own]), "bold"), _bar(0.0 if logprob is None else math.exp(logprob)), others
        )
    return made


def visible(text: str) -> str:
    """Spaces and line ends made visible."""
    return text.replace(" ", "·").replace("\n", "↵").replace("\t", "⇥") or "∅"


def percent(probability: float) -> str:
    return "<1%" if 0 < probability < 0.005 else f"{probability:.0%}"


def _bar(probability: float) -> Text:
    eighths = round(probability * _BAR * 8)
    bar = "█" * (eighths // 8) + ("▏▎▍▌▋▊▉"[eighths % 8 - 1] if eighths % 8 else "")
    return Text.assemble((bar.ljust(_BAR), "green"), f" {percent(probability):>4}")


def _paragraph(console: Console, label: str, text: str, style: str = "") -> None:
    console.print()
    console.print(Text(label, "bold cyan"))
    console.print(Padding(Text(text, style), (0, 0, 0, 2)))
