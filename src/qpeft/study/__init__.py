"""Studies: many training runs, compared.

compare.py       arms x seeds of one recipe (`qpeft compare`)
plan.py          the plan of a study: tasks, arms, tuning and seeds, from YAML
tuning.py        which learning rate wins
records.py       a study's two files: tuning records and run records
tasks.py         the rows of a task, prepared and checked against their SHA-256
runner.py        tunes and trains what the records do not hold yet (`qpeft study run`)
results.py       run records by task and arm, compared pair by pair
power.py         the smallest difference that so many seeds can see
page.py          the Markdown page of a study (`qpeft study report`), with plots.py
leaderboard.py   every study's results in one page, and the check of contributed records (`qpeft study leaderboard`)
verdict.py       one method against the standard protocol, protocol.yaml (`qpeft verdict`)
verdict_page.py  its page, with verdict.html.jinja
"""
