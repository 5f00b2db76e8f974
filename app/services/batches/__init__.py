"""Samples by way of a provider's batch API: cheaper, hours later, and as durable as calls.

config.py      what the runner is told at its start
requests.py    a batch's missing samples as the lines of a file, each with a name that finds it again
submitting.py  handing a batch over, or finding it where an earlier try left it
following.py   looking how far the provider is; cancelling
collecting.py  results to checkpoints and segments, shard by shard
views.py       batches as they are read
running.py     one step of one batch at a time, under a lease; planning where nothing is due

Everything that is known stands in the database before the next thing is done, so that whoever takes up a batch goes on
where the last one was killed. What cannot be known, whether the provider took a batch whose submission broke off, is
asked of the provider before anything is submitted again.
"""

from app.services.batches.config import BatchConfig as BatchConfig
from app.services.batches.config import BuildBatches as BuildBatches
from app.services.batches.running import BatchRunner as BatchRunner
