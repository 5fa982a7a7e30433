"""Run the inputs of given seeds and collect their outcomes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fuzzing.inputs import Input, make
from fuzzing.judging import Violation, violations
from fuzzing.runner import LAST_LINES, Ran, Runner
from fuzzing.samples import Samples


@dataclass(frozen=True)
class Outcome:
    """An input, the result of its command, and the violations in it."""

    given: Input
    ran: Ran
    violations: tuple[Violation, ...]

    @property
    def told(self) -> str:
        """A description with everything needed to reproduce it."""
        last = (self.ran.traceback or self.ran.stderr or self.ran.stdout)[-LAST_LINES:]
        changes = "; ".join(self.given.mutation) or "nothing"
        wrong = "\n".join(f"  {v.kind}: {v.detail}" for v in self.violations)
        return (
            f"seed {self.given.seed} ({self.given.kind}), exit code {self.ran.code}, "
            f"{self.ran.seconds:.1f} s\n"
            f"  changed: {changes}\n  command: {self.given.command}\n{wrong}\n"
            f"  last lines: {last.strip()[-600:]}\n"
            f"  again: python benchmarks/robustness_fuzz.py --seed {self.given.seed} -o OUT\n"
        )


def outcomes(seeds: Iterable[int], folder: Path, samples: Samples, runner: Runner) -> Iterator[Outcome]:
    """Run the inputs of these seeds one after the other, each in a separate folder in ``folder``."""
    for seed in seeds:
        given = make(seed, samples, folder / str(seed))
        ran = runner.run(given)
        yield Outcome(given, ran, violations(given, ran))
