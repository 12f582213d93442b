"""Which programs ran, and on how many samples."""

from fxsurgery.program import Program


class Runs(list[tuple[Program, int | None]]):
    """Each run of a program: the program, and the number of samples."""

    def samples(self, program: Program | None = None) -> list[int | None]:
        """The numbers of samples of the runs of one program, or of all."""
        return [samples for ran, samples in self if program is None or ran is program]
