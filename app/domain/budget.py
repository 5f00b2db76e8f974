"""The arithmetic of budgets: what calls use, what is reserved for them, and that both never pass a cap. Pure."""

from dataclasses import dataclass
from typing import Any

KINDS = ("requests", "tokens", "nanousd")


@dataclass(frozen=True, slots=True)
class Use:
    """Requests, tokens (prompt and completion together) and money (10⁻⁹ USD)."""

    requests: int = 0
    tokens: int = 0
    nanousd: int = 0

    def __add__(self, other: "Use") -> "Use":
        return Use(*(a + b for a, b in zip(self.parts(), other.parts(), strict=True)))

    def __sub__(self, other: "Use") -> "Use":
        return Use(*(a - b for a, b in zip(self.parts(), other.parts(), strict=True)))

    def __mul__(self, times: int) -> "Use":
        return Use(*(part * times for part in self.parts()))

    def parts(self) -> tuple[int, int, int]:
        return self.requests, self.tokens, self.nanousd

    def covers(self, other: "Use") -> bool:
        """Whether there is as much of every kind."""
        return all(a >= b for a, b in zip(self.parts(), other.parts(), strict=True))

    def floored(self) -> "Use":
        """Nothing below zero."""
        return Use(*(max(0, part) for part in self.parts()))


NOTHING = Use()


@dataclass(frozen=True, slots=True)
class Caps:
    """None: no cap of that kind."""

    requests: int | None = None
    tokens: int | None = None
    nanousd: int | None = None

    @classmethod
    def of(cls, budget: dict[str, Any] | None) -> "Caps":
        """From a job's budget as it is stored."""
        found = budget or {}
        usd = found.get("max_cost_usd")
        return cls(
            requests=found.get("max_requests"),
            tokens=found.get("max_tokens"),
            nanousd=None if usd is None else round(usd * 1_000_000_000),
        )

    def __bool__(self) -> bool:
        return any(cap is not None for cap in (self.requests, self.tokens, self.nanousd))

    def short_of(self, use: Use) -> tuple[str, ...]:
        """The kinds of which so much would be too much."""
        caps = (self.requests, self.tokens, self.nanousd)
        return tuple(
            kind
            for kind, cap, part in zip(KINDS, caps, use.parts(), strict=True)
            if cap is not None and part > cap
        )


def share(caps: Caps, taken: Use, reserved: Use, wanted: Use, at_least: Use) -> Use:
    """What a worker may hold: what is reserved for its calls in flight, and of what it wants as much as is free.

    `taken`: used by all and held by others. Where not even `at_least` (one call) is free, nothing beyond `reserved`:
    a rest that nobody can use must not be kept from those who could. Kinds without a cap are not scarce.
    taken + the result ≤ caps wherever taken + reserved ≤ caps.
    """
    if not caps.short_of(taken + reserved + wanted):
        return reserved + wanted
    low, high = 0, 1 << 20  # of wanted, in parts of 2^20: the most that fits

    def part(of: int) -> Use:
        bounded = (caps.requests, caps.tokens, caps.nanousd)
        return Use(
            *(
                amount if cap is None else amount * of >> 20
                for amount, cap in zip(wanted.parts(), bounded, strict=True)
            )
        )

    while low < high:
        middle = (low + high + 1) // 2
        if caps.short_of(taken + reserved + part(middle)):
            high = middle - 1
        else:
            low = middle
    if part(low).covers(at_least):
        return reserved + part(low)
    if not caps.short_of(taken + reserved + at_least):
        return reserved + at_least
    return reserved
