"""Hostile input for every command, and what must hold whatever comes.

One seed makes one input: ``inputs.make`` picks its kind, mutates a sound file of ``samples`` and says which
command reads it. ``runner.Runner`` has a worker process run that command in itself, under a memory limit, and
``judging`` names what must not have happened. The guard ``tests/guards/test_robustness.py`` and
``benchmarks/robustness_fuzz.py`` are the two users.
"""
