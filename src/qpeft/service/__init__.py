"""The quantum task service: users submit circuits to devices, jobs queue durably, workers run them, results are kept.

    schema      the tables                         scheduler   who is served next (start-time fair queueing)
    database    engines, migrations, backup        store       every change of a job's state, one function each
    execute     jobs on a backend                  packed      different users' circuits on one chip
    writer      the one writer, group commit       reads       every question asked of the store
    programs    circuits as users write them       devices     what runs circuits, and what that costs
    api/        HTTP: API v1, workers, pyqpanda3   worker      lease, run, complete; over HTTP only
    server      all of it in one command           client      the typed client

A worker never touches the database and the API never runs a circuit.
"""
