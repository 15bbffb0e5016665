"""Special jobs for a general model: real data with its card, measures that the field uses, plain baselines, prediction, serving.

A *data set* (`catalogue`) is read from where it is published (`sources`, `raw`), turned into text (`tables`), split without leakage
(`splits`) and written with its card (`prepare`). What a run is asked to do is a `Task` (task.json, beside the rows). A finished
run on it is judged by label likelihoods (`classify`) or by its answers (`generation`), against baselines on the same rows
(`baselines`), and used (`predict`, `server`).
"""
