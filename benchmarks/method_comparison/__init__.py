"""Our methods in PEFT's own comparison (`method_comparison/MetaMathQA` of PEFT's repository): experiment files, and a small run.

`experiments/<method>/<name>/` holds what that suite wants: `adapter_config.json`, and `training_params.json` where a setting is
not the suite's default. Copy the folder into the suite's `experiments/` and start its script with qpeft's methods entered:

    python -c "import runpy, sys, qpeft.adapters.peft; sys.argv[0] = 'run.py'; runpy.run_path('run.py', run_name='__main__')" \
        -v experiments/qtha/llama-3.2-3B-rank8

The suite needs a GPU and models of the hub. `python -m benchmarks.method_comparison` follows its steps with a model and data that
need neither.
"""
