"""Under which terms data was made, what they permit, and what a student owes: pure, and decided by data.

`decisions.decide` judges, `notice.student_notice` says what is owed; `terms.toml` and `routes.toml` hold what is known.
"""
