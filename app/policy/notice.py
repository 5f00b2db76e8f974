"""What a student must carry that is trained on an export: as data, and as a text to put beside it."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from app.policy.decisions import DatasetLicence, Decision
from app.policy.lattice import Kind, name_prefix, share_alike_targets
from app.policy.record import ObligationRecord, PermissionsRecord, recorded


class StudentNotice(BaseModel):
    """The duties of whoever trains on the data and gives the student, or the data, to others.

    `required_name_prefix` is None where none is asked, and where `conflicting_name_prefixes` cannot be met at once.
    `share_alike_as`: licences under which derived data satisfies every one of `share_alike`. `behind_teachers`: those
    on whose rows the teachers were trained, as far as it was told.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    required_name_prefix: str | None
    conflicting_name_prefixes: tuple[str, ...]
    notices: tuple[ObligationRecord, ...]
    displays: tuple[ObligationRecord, ...]
    attributions: tuple[ObligationRecord, ...]
    use_policies: tuple[ObligationRecord, ...]
    size_gates: tuple[ObligationRecord, ...]
    naming: tuple[ObligationRecord, ...]
    share_alike: tuple[str, ...]
    share_alike_as: tuple[str, ...]
    non_commercial: bool
    research_only: bool
    may_compete: str
    permissions: PermissionsRecord
    license: DatasetLicence
    teachers: tuple[str, ...]
    behind_teachers: tuple[str, ...] = ()
    policy_version: str

    @property
    def empty(self) -> bool:
        """Nothing at all is asked."""
        return not self.permissions.obligations and not self.share_alike


def student_notice(decision: Decision) -> StudentNotice:
    """The notice of the data that a decision judged."""
    permissions = decision.permissions.permissions()
    prefix, conflicting = name_prefix(permissions.obligations)

    def of(kind: Kind) -> tuple[ObligationRecord, ...]:
        return recorded(o for o in permissions.obligations if o.kind is kind)

    return StudentNotice(
        required_name_prefix=prefix,
        conflicting_name_prefixes=tuple(sorted(conflicting)),
        notices=of(Kind.NOTICE),
        displays=of(Kind.DISPLAY),
        attributions=of(Kind.ATTRIBUTION),
        use_policies=of(Kind.USE_POLICY),
        size_gates=of(Kind.MAU_GATE),
        naming=of(Kind.NAMING),
        share_alike=tuple(sorted(permissions.share_alike)),
        share_alike_as=tuple(sorted(share_alike_targets(permissions.share_alike)))
        if permissions.share_alike
        else (),
        non_commercial=decision.permissions.commercial == "no",
        research_only=permissions.research_only,
        may_compete=decision.permissions.compete,
        permissions=decision.permissions,
        license=decision.license,
        teachers=tuple(sorted({name for part in decision.parts for name in part.teachers})),
        behind_teachers=tuple(
            sorted({teacher.name for data in decision.inputs.training_data for teacher in data.teachers})
        ),
        policy_version=decision.policy_version,
    )


def notice_text(notice: StudentNotice) -> str:
    """The notice as Markdown, for a file beside the data."""
    lines = ["# What a student trained on this data must carry", ""]
    if notice.required_name_prefix is not None:
        lines += [f"**The student's name must begin with “{notice.required_name_prefix}”.**", ""]
    if notice.conflicting_name_prefixes:
        names = ", ".join(f"“{name}”" for name in notice.conflicting_name_prefixes)
        lines += [
            f"**The names that are asked cannot be met at once: {names}. Do not distribute the student.**",
            "",
        ]
    if notice.research_only:
        lines += ["**For research only.**", ""]
    if notice.non_commercial:
        lines += ["**Not for commercial use.**", ""]
    if notice.may_compete != "yes":
        lines += [_COMPETE[notice.may_compete], ""]
    for title, obligations in (
        ("Name", notice.naming),
        ("Notices", notice.notices),
        ("Words to display", notice.displays),
        ("Attribution", notice.attributions),
        ("Use policies", notice.use_policies),
        ("Size", notice.size_gates),
    ):
        if obligations:
            lines += [f"## {title}", "", *(_line(o) for o in obligations), ""]
    if notice.share_alike:
        lines += ["## Share alike", "", *_share_alike(notice), ""]
    if notice.empty:
        lines += ["Nothing is asked.", ""]
    lines += ["## Licence of the data", "", *_licence(notice.license), ""]
    teachers = ", ".join(notice.teachers) or "none"
    if notice.behind_teachers:
        teachers += f" (trained on rows of {', '.join(notice.behind_teachers)})"
    lines += [f"Teachers: {teachers}. Terms: policy {notice.policy_version}. This is no legal advice.", ""]
    return "\n".join(lines)


_COMPETE = {
    "no": "**The student must not compete with the maker of every teacher named below: some terms forbid it.**",
    "conditional": "Whether the student may compete with a teacher's maker depends on a condition of the terms.",
    "unknown": "Whether the student may compete with a teacher's maker is not known.",
}


def _line(obligation: ObligationRecord) -> str:
    shown = (
        obligation.kind is not Kind.MAU_GATE and obligation.value and obligation.value not in obligation.text
    )
    words = f" “{obligation.value}”" if shown else ""
    url = f" <{obligation.url}>" if obligation.url else ""
    return f"- {obligation.text}{words}{url} ({obligation.source})"


def _share_alike(notice: StudentNotice) -> Sequence[str]:
    names = ", ".join(notice.share_alike)
    if notice.share_alike_as:
        return [
            f"- {names}: what is derived from the data is given on under {' or '.join(notice.share_alike_as)}."
        ]
    return [
        f"- {names}: no licence satisfies all of them. Do not give on what is derived from all of this data."
    ]


def _licence(licence: DatasetLicence) -> Sequence[str]:
    if licence.license != "other":
        return [f"`{licence.license}`"]
    rows = [f"- `{expression}`: {key}" for key, expression in licence.by_part.items()]
    return ["`other`, part by part:", "", *rows]
