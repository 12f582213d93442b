"""Figures of the paper: means over six start nets, 1,000 epochs per search (Schiessler et al., ECToNAS, 2023)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A row: test accuracy in percent, its deviation, parameters in thousands."""

    test: float
    deviation: float
    params: float

    @property
    def accuracy(self) -> str:
        """As a cell."""
        return f"{self.test} ± {self.deviation}"


FASHION = {
    "greedy": Published(87.2, 1.5, 43),
    "alpha-0.5": Published(83.7, 2.3, 6),
    "alpha-0": Published(83.9, 2.6, 6),
    "random": Published(85.3, 2.7, 29),
    "baseline": Published(86.8, 1.4, 28),
}
"""Tables 1 and 2, Fashion-MNIST: 10 runs a start net; the baseline trained for 200 epochs."""
ADULT = {
    "greedy": Published(84.8, 0.7, 7.6),
    "alpha-0.5": Published(83.6, 1.2, 1.5),
    "alpha-0": Published(83.5, 1.3, 1.4),
    "random": Published(83.7, 1.2, 6.5),
    "baseline": Published(84.4, 0.4, 5.5),
}
"""Table 5, the modified Adult set: 25 runs a start net."""
CROSSINGS = {"greedy": (5, 0), "alpha-0.5": (0, 67), "alpha-0": (0, 74)}
"""Table 3, of 75 runs each: CNN to FFNN, FFNN to CNN."""
CROSSING_RUNS = 75
