"""Three worked turns that stand before a prompt from which the embedded teacher is to reason.

An instruction alone does not make so small a model close a trace: of 13 demo prompts it closed none, with these
turns it closed 8, and its answers keep to the question. Our own writing.
"""

from app.domain.reasoning import CLOSE
from app.teachers.base import Turn
from app.teachers.elicit import BEGIN

_SHOTS = (
    (
        "A box holds 8 pens. How many pens are in 3 boxes?",
        "One box holds 8 pens. There are 3 boxes, so I multiply: 8 times 3 is 24.",
        "There are 24 pens.",
    ),
    (
        "Which is heavier, a cat or a horse?",
        "A cat weighs a few kilograms. A horse weighs several hundred. So the horse is heavier.",
        "A horse is heavier than a cat.",
    ),
    (
        "Write one sentence about the sea.",
        "The sea is wide and it never rests. I could speak of its waves and of the light on them.",
        "The sea rolls on under the morning light and is never still.",
    ),
)


def with_shots(messages: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """The messages, which begin with a system message, and the worked turns after it."""
    turns: list[Turn] = []
    for question, trace, answer in _SHOTS:
        turns.append({"role": "user", "content": question})
        turns.append({"role": "assistant", "content": f"{BEGIN}{trace}\n{CLOSE}\n\n{answer}"})
    return (messages[0], *turns, *messages[1:])
