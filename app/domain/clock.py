"""Steps of time that both the writer and the reader of a job's pace use."""

PACE_SECONDS = 5
