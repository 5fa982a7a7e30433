"""Hostile input for every command, and the properties that must hold for any input.

One seed makes one input: ``inputs.make`` picks its kind, mutates a valid file of ``samples`` and determines
the command that reads it. ``runner.Runner`` has a worker process run that command, under a memory limit, and
``judging`` names violations. The guard ``tests/guards/test_robustness.py`` and
``benchmarks/robustness_fuzz.py`` are the two users.
"""
