"""`qpeft ui`: the training runs of a folder as pages, on this machine alone.

runs.py       what is known of each run from its files     server.py   who gets in, addresses
control.py    start, pause and resume runs                 pages/      one file for a page
worker.py     a process with a model: circuits, chat, samples
"""
