"""The durable engine: shards are claimed, their prompts answered, the answers recorded, and nothing is lost or doubled.

config.py     what the engine is told at its start
work.py       what there is to do: a shard's missing samples
lane.py       a teacher's part of a job that this worker works on: shards, room for calls
opening.py    the teachers that are open, and whether they fit their lanes
calls.py      one call to a teacher, with its retries, to outcomes
recording.py  outcomes to checkpoints; a shard's end
ledger.py     claims, heartbeats, shares of caps: the short transactions beside the checkpoints
engine.py     the event loop that keeps the teachers busy
"""
