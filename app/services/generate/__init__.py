"""The durable engine: shards are claimed, their prompts answered, the answers recorded, and nothing is lost or doubled.

work.py       what there is to do: a lane's settings, a shard's missing samples
calls.py      one call to a teacher, with its retries, to outcomes
recording.py  outcomes to checkpoints; a shard's end
engine.py     the event loop that keeps the teachers busy
"""
