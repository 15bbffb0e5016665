"""The simulator's engine in C: `compiler` turns circuits into bytecode, the other modules call the compiled kernel on it."""
