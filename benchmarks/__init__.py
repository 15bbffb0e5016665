"""Benchmarks: one module, and one command, per table (`python -m benchmarks.circuits`).

One thread, unless the environment says otherwise: the variables must be set before the libraries that read them are loaded.
"""

import os

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")  # JAX has no call for it
