"""The error tree. Domain errors know no HTTP; `app/api/problems.py` maps each class to a status.

RetortError
├── InvalidInput            the caller's data is wrong; says what, where and how to mend it
│   ├── InvalidLicense      not an SPDX expression
│   ├── InvalidSignature    an export is not what was signed, or not by this key
│   ├── InvalidRow          one line of a prompt set does not parse
│   ├── InvalidCursor       a page cursor that this service did not make
│   └── Unfit               these rows cannot be exported in this format; says what would help
├── NotFound                no such thing in this project
├── Conflict                the thing is in a state that forbids this
│   ├── Sealed              the prompt set is immutable
│   ├── IllegalTransition   a job cannot go from this status to that
│   └── IdempotencyConflict one Idempotency-Key, two different requests
├── Unauthenticated         no key, or one that is not known
├── Forbidden               the key's role does not allow this
├── PolicyRefusal           the terms or licences forbid the intended use; carries the decision
├── LeaseLost               another worker owns the shard now: drop the work, write nothing
├── StorageError            a segment or file is missing, damaged or cannot be written
└── TeacherError            what a driver raises; the engine decides by the class, never by words
    ├── TransientTeacherError   worth asking again (429, 5xx, cut connection, time-out)
    │   ├── RateLimited         carries retry_after seconds, where given
    │   │   └── Overloaded      503: the server has more than it can take
    │   ├── MalformedAnswer     an answer that cannot be what was asked for (half a JSON, NaN logprobs)
    │   └── TeacherUnavailable  nothing answers: the lane parks, no attempt is burnt
    └── PermanentTeacherError   asking again cannot help (400, refused parameter)
        ├── Unsupported         the teacher cannot do this (k too large, no scoring)
        ├── TeacherRefusedKey   401 or 403: the lane parks until the secret is mended
        └── IdentityChanged     not the model that the job began with: the lane parks
"""


class RetortError(Exception):
    """Base of every error that this service raises on purpose.

    `detail` is a full sentence for a person; `kind` is a stable slug for programs.
    """

    kind = "error"

    def __init__(self, detail: str, **extra: object) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extra = extra


class InvalidInput(RetortError):
    kind = "invalid-input"


class InvalidLicense(InvalidInput):
    kind = "invalid-license"


class InvalidSignature(InvalidInput):
    kind = "invalid-signature"


class InvalidRow(InvalidInput):
    kind = "invalid-row"


class InvalidCursor(InvalidInput):
    kind = "invalid-cursor"


class Unfit(InvalidInput):
    kind = "export-unfit"


class NotFound(RetortError):
    kind = "not-found"


class Conflict(RetortError):
    kind = "conflict"


class Sealed(Conflict):
    kind = "prompt-set-sealed"


class IllegalTransition(Conflict):
    kind = "illegal-transition"


class IdempotencyConflict(Conflict):
    kind = "idempotency-conflict"


class Unauthenticated(RetortError):
    kind = "unauthenticated"


class Forbidden(RetortError):
    kind = "forbidden"


class PolicyRefusal(RetortError):
    """`decision`: the whole decision as JSON, to be kept; what a client is told of it is in `extra`."""

    kind = "policy-refusal"

    def __init__(self, detail: str, decision: str = "", **extra: object) -> None:
        super().__init__(detail, **extra)
        self.decision = decision


class LeaseLost(RetortError):
    kind = "lease-lost"


class StorageError(RetortError):
    kind = "storage"


class TeacherError(RetortError):
    kind = "teacher"


class TransientTeacherError(TeacherError):
    kind = "teacher-transient"

    def __init__(self, detail: str, retry_after: float | None = None, **extra: object) -> None:
        super().__init__(detail, **extra)
        self.retry_after = retry_after


class RateLimited(TransientTeacherError):
    kind = "teacher-rate-limited"


class Overloaded(RateLimited):
    kind = "teacher-overloaded"


class MalformedAnswer(TransientTeacherError):
    kind = "teacher-malformed-answer"


class TeacherUnavailable(TransientTeacherError):
    kind = "teacher-unavailable"


class PermanentTeacherError(TeacherError):
    kind = "teacher-permanent"


class Unsupported(PermanentTeacherError):
    kind = "teacher-unsupported"


class TeacherRefusedKey(PermanentTeacherError):
    kind = "teacher-refused-key"


class IdentityChanged(PermanentTeacherError):
    kind = "teacher-identity-changed"
