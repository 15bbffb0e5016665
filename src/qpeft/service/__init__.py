"""The quantum task service: users submit circuits to devices, jobs queue durably, workers run them, results are kept.

    server       `qpeft serve`: API and worker processes       app          the ASGI application
    api/         routes of API v1, workers, pyqpanda3          dashboard/   the web pages
    core         the parts of one API process                  scheduling/  submissions, their cost, who is served next
    store/       tables, the one writer, every question        workers/     the loop of a worker process, and its devices
    worker       `qpeft worker`: one worker process            vendor/      a vendor's chip as a device
    client       the typed client                              messages     bodies of requests and results

One submission: api/guard (bounds) -> api/jobs (decode, answer) -> scheduling/admission (check, cost) -> store/writer (group commit)
-> store/lifecycle (quota, rows). A worker never touches the database and the API never runs a circuit.
"""
