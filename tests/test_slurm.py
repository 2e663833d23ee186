"""The book's example for Slurm, on a Slurm of one node that these tests start."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pandas
import pytest
from tiny import slurm_example, tiny_notebook, wait

PARTS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "squeue")
CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides  # the node's size is as written here
KillWait=2
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=16000
PartitionName=all Nodes=ALL Default=YES State=UP
"""
# runs a command; when that ends, or our end of the pipe closes, kills all that it has started
KEEPER = """\
import contextlib, ctypes, os, subprocess, sys, threading
import psutil
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans below are its children
kept = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
def end():
    while left := psutil.Process().children(recursive=True):
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=1)
def watch():
    os.read(0, 1)
    end()
    os._exit(1)
threading.Thread(target=watch, daemon=True).start()
status = kept.wait()
end()
os._exit(status)
"""


class Slurm:
    """Its commands. environment: what they, and whoever starts jobs, need."""

    def __init__(self, conf: Path) -> None:
        theirs = ("SLURM", "SBATCH", "DASK")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(theirs)}
        self.environment = kept | {"SLURM_CONF": str(conf)}

    def __call__(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        assert not done.returncode, (command, done.stderr)
        return done.stdout

    def jobs(self, state: str) -> set[str]:
        return set(self("squeue", "-h", "-o", "%i", "-t", state).split())

    def state(self, kind: str, name: str) -> str:
        said = self("scontrol", "-o", "show", kind, name)
        return next(w for w in said.split() if "State=" in w).partition("=")[2]

    def start(self, *command: str, **options) -> subprocess.Popen:
        """A process that ends with all that it has started, when its standard input closes."""
        line = [sys.executable, "-c", KEEPER, *command]
        return subprocess.Popen(line, env=self.environment, stdin=subprocess.PIPE, **options)


def end(process: subprocess.Popen) -> None:
    process.stdin.close()
    process.wait(60)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture
def slurm():
    """A Slurm of one node with two CPUs, for root alone, on loopback; it ends with the test."""
    if missing := [part for part in PARTS if not shutil.which(part)]:
        pytest.skip(f"no Slurm here: there is no {', '.join(missing)}")
    if os.getuid():
        pytest.skip("a Slurm of ours needs root")
    pytest.importorskip("dask_jobqueue")
    with tempfile.TemporaryDirectory(
        dir="/tmp", prefix="slurm"
    ) as name:  # a short name of a socket
        folder = Path(name)
        conf = folder / "slurm.conf"
        host = socket.gethostname().partition(".")[0]
        conf.write_text(CONF.format(host=host, folder=folder, ports=free_ports(2)))
        (folder / "key").write_bytes(os.urandom(128))
        (folder / "key").chmod(0o600)
        (folder / "state").mkdir()
        (folder / "spool").mkdir()
        ours = Slurm(conf)
        files = {"key-file": "key", "socket": "munge", "pid-file": "pid", "seed-file": "seed"}
        files = [f"--{option}={folder / file}" for option, file in files.items()]
        parts = [
            # --force: with its socket in a folder that is closed to others
            ["munged", "--foreground", "--force", f"--log-file={folder}/munged.log", *files],
            ["slurmctld", "-D"],
            ["slurmd", "-D", "-N", "node"],
        ]
        started = []
        try:
            for part in parts:
                with (folder / "log").open("a") as log:
                    started.append(ours.start(*part, stdout=log, stderr=log))
                wait(lambda: (folder / "munge").exists())

            def is_up():
                try:
                    return ours.state("node", "node") == "IDLE"
                except AssertionError:  # slurmctld does not answer yet
                    return False

            def runs_jobs():
                if not is_up():
                    return False
                ours("sbatch", "--wait", "--chdir=/tmp", "--output=/dev/null", "--wrap=true")
                return True

            try:
                wait(runs_jobs)
            except AssertionError:  # containers may forbid what it needs
                pytest.skip(f"no Slurm starts here: {(folder / 'log').read_text()[-2000:]}")
            yield ours
        finally:
            for process in reversed(started):
                end(process)
            print((folder / "log").read_text())


CODE = (
    "seed: int = 0  # a seed\nfolder: str = ''  # of the files below\n",
    "from companion.notebook import check_parameters\n"
    "settings = check_parameters(globals(), seed=(0, 9))\n",
    """\
import os, pathlib, time
from companion.notebook import record
folder = pathlib.Path(folder)
with (folder / "started").open("a") as file:
    print(seed, os.environ["SLURM_JOB_ID"], file=file)
while not (folder / f"go{seed}").exists():
    time.sleep(0.05)
record("tiny.double", 2 * seed)
""",
)


def test_the_example_for_slurm_loses_no_finished_run(slurm, tls, tmp_path):
    """Its node drains, a job is cancelled, and the wall time of all jobs ends; with TLS."""
    notebook = tiny_notebook(tmp_path, CODE, tags=["parameters"])
    out = tmp_path / "out"
    example = slurm_example(notebook, out, tls[0], jobs=2, options=["-p", "folder", str(tmp_path)])
    (tmp_path / "slurm_sweep.py").write_text(example)

    def go(*seeds):
        """Let these runs end."""
        for seed in seeds:
            (tmp_path / f"go{seed}").touch()

    def started():
        """(seed, job) of each start, in their order."""
        file = tmp_path / "started"
        lines = file.read_text().splitlines() if file.exists() else []
        return [tuple(line.split()) for line in lines]

    def latest(jobs):
        """{job: the run that it has started last}"""
        return {job: seed for seed, job in started() if job in jobs}

    def busy():
        """The same of the jobs that are in the middle of a run."""
        return {job: seed for job, seed in latest(slurm.jobs("RUNNING")).items() if seed != "0"}

    def kept():
        return {file.name: file.read_bytes() for file in (out / "runs").glob("*.json")}

    # a job that is gone is missed after a second, not after 15
    slurm.environment["DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT"] = "1s"
    with (tmp_path / "log").open("w") as log:
        sweep = slurm.start(sys.executable, "slurm_sweep.py", cwd=tmp_path, stdout=log, stderr=log)

    def wait_for(condition):
        def so():
            assert sweep.poll() is None, "the sweep has ended"
            return condition()

        wait(so, 240)

    try:
        go("0")
        wait_for(lambda: len(kept()) == 1)
        wait_for(lambda: len(busy()) == 2)
        first = busy()
        ended, other = first

        # the node drains: its jobs go on, and what they finish is kept
        slurm("scontrol", "update", "nodename=node", "state=drain", "reason=test")
        assert "DRAIN" in slurm.state("node", "node")
        go(first[ended])
        wait_for(lambda: len(kept()) == 2)
        wait_for(lambda: latest([ended])[ended] != first[ended])
        cancelled = latest([ended])[ended]

        # a job is cancelled in the middle of a run: another waits for the node, and does it
        slurm("scancel", ended)
        wait_for(lambda: slurm.jobs("PENDING"))
        assert slurm.jobs("RUNNING") == {other}
        (new,) = slurm.jobs("PENDING")
        slurm("scontrol", "update", "nodename=node", "state=resume")
        wait_for(lambda: latest([new]) == {new: cancelled})

        # the wall time of both ends, in the middle of a run in each
        for job in (new, other):
            slurm("scontrol", "update", f"jobid={job}", "endtime=now")
        wait_for(lambda: len(slurm.jobs("RUNNING") - {new, other}) == 2)
        assert slurm.state("job", new) == slurm.state("job", other) == "TIMEOUT"
        assert len(kept()) == 2
        finished = kept()
        go("1", "2", "3")
        assert sweep.wait(240) == 0
    finally:
        end(sweep)
        print((tmp_path / "log").read_text())

    assert "4 of 4 runs done" in (tmp_path / "log").read_text()
    assert pandas.read_csv(out / "table.csv")["tiny.double"].tolist() == [0, 2, 4, 6]
    assert finished.items() < kept().items()
    said = "".join(file.read_text() for file in tmp_path.glob("slurm-*.out"))
    assert "tls://" in said
    assert "tcp://" not in said
    counts = Counter(seed for seed, _ in started())
    assert counts == {"0": 1, first[ended]: 1, first[other]: 2, cancelled: 3}
    wait(lambda: not slurm.jobs("PENDING,RUNNING,COMPLETING"))
