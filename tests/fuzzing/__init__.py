"""Invalid and malicious input for every command, and the properties that must hold for any input.

Each seed defines one input: ``inputs.make`` chooses its kind, mutates a valid file from ``samples`` and
determines the command that reads it. ``runner.Runner`` runs that command in a worker process with a memory
limit, and ``judging`` reports violations. This package is used by ``tests/guards/test_robustness.py`` and
``benchmarks/robustness_fuzz.py``.
"""
