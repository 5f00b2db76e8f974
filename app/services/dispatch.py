"""What moves jobs along beside the workers' own claims. Idempotent: any process may do it, any number of times."""

from sqlalchemy import Engine, func, select

from app.db import cutting, shards
from app.db.models import Job, PromptSet, Worker
from app.db.session import db_now, reading, transaction
from app.domain.lifecycle import JobStatus
from app.services.ports import Wake


def tick(database: Engine, wake: Wake) -> None:
    """Cut what is not in shards yet, end what is done, and ring for what can be claimed."""
    with reading(database) as connection:
        uncut = connection.execute(
            select(Job.id)
            .join(PromptSet, PromptSet.id == Job.prompt_set_id)
            .where(shards.ACTIVE, Job.cut_through < PromptSet.n_prompts)
        ).scalars()
        to_cut = list(uncut)
        ended = connection.execute(
            select(Job.id).where(
                shards.ACTIVE, Job.status != JobStatus.PAUSED, Job.n_shards_finished >= Job.n_shards
            )
        ).scalars()
        to_end = list(ended)
    for job_id in to_cut:
        more = True
        while more:
            with transaction(database) as connection:
                more = cutting.cut(connection, job_id)
    for job_id in to_end:
        with transaction(database) as connection:
            shards.end_job_if_done(connection, job_id)
    with reading(database) as connection:
        claimable = shards.candidates(connection, ())
        idle = connection.execute(
            select(func.count())
            .select_from(Worker)
            .where(Worker.lease_until > db_now(), Worker.in_flight == 0)
        ).scalar_one()
    for _ in range(min(len(claimable), idle)):
        wake(None)
