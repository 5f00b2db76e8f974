"""The durable engine: shards are claimed, their prompts answered, the answers recorded, and nothing is lost or doubled.

config.py      what the engine is told at its start
work.py        what there is to do: a shard's missing samples
lane.py        a teacher's part of a job that this worker works on: shards, room for calls
holdings.py    what this worker holds: lanes, shards, calls in flight
opening.py     the teachers that are open, and whether they fit their lanes
beginnings.py  from a claim to a shard that is worked on
calls.py       one call to a teacher, with its retries, to outcomes
sending.py     which unit goes next, and what becomes of a call
recording.py   outcomes to checkpoints; a shard's end
recorder.py    what is finished and not recorded yet
endings.py     shards finished, lanes closed, leases lost
control.py     heartbeats, paused and cancelled jobs, shares of caps
ledger.py      the short transactions beside the checkpoints
threads.py     the threads beside the loop
engine.py      the event loop that keeps the teachers busy
"""
