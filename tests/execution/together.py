"""A batch in a run of several processes: `torchrun together.py FOLDER`. Each writes what it came to, as JSON."""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

import torch

from execution.jobs import jobs, task, told
from fxsurgery.errors import DeviceError
from fxsurgery.execution import JobRunner
from fxsurgery.runs.run_directory import RunDir

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    with RunDir.open(folder, {"seed": 0}, resume=True) as run:
        ended = JobRunner(device="cpu").run(jobs(2), task(), run, deadline=time.monotonic() + 1e4)
        ended[0].forget()
        late = JobRunner(device="cpu").run(jobs(2), task(), run, deadline=time.monotonic() - 1)
        try:
            JobRunner("processes", device="cpu").run(jobs(1), task(), RunDir())
            refused = ""
        except DeviceError as error:
            refused = str(error)
        end = hashlib.sha256(repr(told(ended[1:])).encode()).hexdigest()
        told_of = {"end": end, "late": [e.failure for e in late], "refused": refused}
    (folder.parent / f"{folder.name}.{os.environ['RANK']}").write_text(json.dumps(told_of))
