"""The options that declare what data is for, and the model that they make."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from app.domain.sampling import IntendedUse

Commercial = Annotated[
    bool, typer.Option("--commercial", help="The student earns money.", rich_help_panel="Intended use")
]
Competing = Annotated[
    bool,
    typer.Option(
        "--competing", help="The student competes with the teacher's maker.", rich_help_panel="Intended use"
    ),
]
Redistribution = Annotated[
    bool,
    typer.Option(
        "--redistribution", help="Data or student are given to others.", rich_help_panel="Intended use"
    ),
]


def intended_use(commercial: bool, competing: bool, redistribution: bool) -> "IntendedUse":
    from app.domain.sampling import IntendedUse

    return IntendedUse(
        commercial=commercial,
        competing=competing,
        redistribution=redistribution,
        research=not (commercial or competing),
    )
