"""What a service is given by the root that starts it, since `app` never imports `workers`."""

from collections.abc import Callable, Sequence

from app.teachers.base import Teacher, TeacherSpec

# Tell workers that there is work, for one teacher or (None) for any. A hint: it may do nothing, and never raises.
Wake = Callable[[str | None], None]

# Drop wake-ups for these teachers that nobody listens to, and count them. It may do nothing, and never raises.
ForgetWakeUps = Callable[[Sequence[str]], int]

# A sentence that says what is wrong with the broker, or None. Returns within a second or two.
BrokerProblem = Callable[[], str | None]

# A driver bound to a registered teacher. Raises a subclass of `RetortError` where it cannot be.
OpenTeacher = Callable[[TeacherSpec], Teacher]


def wake_nobody(teacher: str | None) -> None:
    """For a service without a broker: workers find the work when they next look."""


def no_broker() -> str | None:
    """For a service that has no broker to worry about."""
    return None
