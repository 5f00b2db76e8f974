"""`make demo`: the main job, end to end, on a small real teacher that runs on this machine."""
