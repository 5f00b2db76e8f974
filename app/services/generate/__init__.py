"""The durable engine: shards are claimed, their prompts answered, the answers recorded, and nothing is lost or doubled.

config.py      what the engine is told at its start
work.py        what there is to do: a shard's missing samples
lane.py        a teacher's part of a job that this worker works on: its shards, whose call is next
holdings.py    what this worker holds: lanes, shards, calls in flight
replicas.py    the servers of a teacher: which are well, which fit a lane, which have room
admission.py   the one place that is asked for room before each call, and told what became of it
beginnings.py  from a claim to a shard that is worked on
reusing.py     equal samples of earlier jobs, where the job asks for them
careful.py     a shard over which workers died: prompt by prompt
calls.py       one call to a teacher, to outcomes or to another try
sending.py     which unit goes next, and what becomes of a call
recording.py   outcomes to checkpoints; a shard's end
recorder.py    what is finished and not recorded yet
endings.py     shards finished, lanes closed, leases lost
control.py     heartbeats, paused and cancelled jobs
ledger.py      the short transactions beside the checkpoints
threads.py     the threads beside the loop
engine.py      the event loop that keeps the teachers busy
"""
