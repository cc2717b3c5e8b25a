"""A private Slurm of one node: no systemd, no cgroups, no accounting, free ports; its daemons are our children."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = (
    "munged",
    "mungekey",
    "slurmctld",
    "slurmd",
    "srun",
    "sbatch",
    "scontrol",
    "scancel",
    "squeue",
    "sinfo",
)

# submitit asks only `sacct` for the state of jobs, and that needs a data base; this one asks slurmctld.
SACCT = """\
#!{python}
import re, subprocess, sys
print("JobID|State|NodeList")
for wanted in [sys.argv[i + 1] for i, argument in enumerate(sys.argv) if argument == "-j"]:
    shown = subprocess.run(["scontrol", "-o", "show", "job", wanted], capture_output=True, text=True, timeout=60).stdout
    for line in shown.splitlines():
        job = dict(re.findall(r"(\\w+)=(\\S*)", line))
        if "JobId" not in job:
            continue
        name = job["JobId"]
        if "ArrayJobId" in job:
            task = job.get("ArrayTaskId", "")
            name = job["ArrayJobId"] + (f"_{{task}}" if task.isdigit() else f"_[{{task}}]")
        print(f"{{name}}|{{job.get('JobState', 'UNKNOWN')}}|{{job.get('NodeList', '')}}")
"""

# cred_expire is also how long a requeued job waits; MinJobAge keeps finished jobs visible to the sacct above.
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.sock,cred_expire=5
CredType=cred/munge
SlurmctldPort={controller_port}
SlurmdPort={node_port}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=2,sched_interval=2
ReturnToService=2
KillWait=2
MinJobAge=3600
JobRequeue=1
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:2
"""


class SlurmUnavailableError(RuntimeError):
    """Why there is no Slurm here."""


class MiniSlurm:
    """The daemons below one directory, and the environment in which Slurm's commands find them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.daemons: list[tuple[str, subprocess.Popen[bytes]]] = []
        outside = {
            key: value for key, value in os.environ.items() if not re.match("SLURM_|SBATCH_|SRUN_", key)
        }
        self.environment = {
            **outside,
            "SLURM_CONF": str(root / "slurm.conf"),
            "PATH": f"{root / 'bin'}:/usr/sbin:{os.environ['PATH']}",
        }

    def command(self, *arguments: str) -> str:
        """The output of one of Slurm's commands."""
        done = subprocess.run(
            arguments, env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )
        return done.stdout.strip()

    def start(self, timeout: float = 30) -> None:
        """Start everything; raises SlurmUnavailableError where that does not work."""
        self._check()
        self._write_files()
        try:
            self._start_daemons(timeout)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Cancel all jobs and end the daemons."""
        if len(self.daemons) == 3 and not self._dead():
            self.command("scancel", "-u", "root")
            self._wait(15, lambda: not self.command("squeue", "-h"))
        for _, process in reversed(self.daemons):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.daemons = []

    def _check(self) -> None:
        if os.geteuid() != 0:
            raise SlurmUnavailableError("needs root")
        missing = [name for name in PROGRAMS if not shutil.which(name, path=self.environment["PATH"])]
        if missing:
            install = "apt-get install -y --no-install-recommends slurm-wlm"
            raise SlurmUnavailableError(f"not installed: {', '.join(missing)} ({install})")
        if len(str(self.root)) > 80:
            raise SlurmUnavailableError(f"{self.root} is too long for a socket's name")

    def _write_files(self) -> None:
        for name in ("state", "spool", "bin", "keys"):
            (self.root / name).mkdir(parents=True)
        self.root.chmod(0o755)
        (self.root / "keys").chmod(0o700)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 * 9 // 10
        controller_port, node_port = _free_ports(2)
        configuration = CONFIGURATION.format(
            host=_host(),
            root=self.root,
            controller_port=controller_port,
            node_port=node_port,
            cpus=os.cpu_count(),
            memory=memory,
        )
        (self.root / "slurm.conf").write_text(configuration)
        sacct = self.root / "bin" / "sacct"
        sacct.write_text(SACCT.format(python=sys.executable))
        sacct.chmod(0o755)

    def _start_daemons(self, timeout: float) -> None:
        key = self.root / "keys" / "key"
        self.command("mungekey", "--create", "--keyfile", str(key))
        files = {
            "key-file": "keys/key",
            "socket": "munge.sock",
            "pid-file": "munged.pid",
            "log-file": "munged.log",
        }
        files["seed-file"] = "keys/seed"
        options = [f"--{option}={self.root / name}" for option, name in files.items()]
        self._start("munged", "--foreground", "--force", *options)
        self._wait(10, (self.root / "munge.sock").exists)
        self._start("slurmctld", "-D", "-c")
        self._start("slurmd", "-D", "-c", "-N", _host())
        self._wait(timeout, lambda: self._dead() or self.command("sinfo", "-h", "-o", "%T") == "idle")
        if self._dead() or self.command("sinfo", "-h", "-o", "%T") != "idle":
            raise SlurmUnavailableError(self._why())

    def _start(self, *command: str) -> None:
        with (self.root / f"{command[0]}.out").open("wb") as output:
            process = subprocess.Popen(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.daemons.append((command[0], process))

    def _wait(self, timeout: float, ready) -> None:
        end = time.monotonic() + timeout
        while time.monotonic() < end and not ready():
            time.sleep(0.1)

    def _dead(self) -> list[str]:
        return [name for name, process in self.daemons if process.poll() is not None]

    def _why(self) -> str:
        lines = [
            line for name, _ in self.daemons for line in (self.root / f"{name}.out").read_text().splitlines()
        ]
        errors = [line for line in lines if re.search("fatal|error", line, re.IGNORECASE)]
        dead = ", ".join(self._dead())
        return (f"{dead} ended" if dead else "the node is not idle") + (f": {errors[-1]}" if errors else "")


def _host() -> str:
    return socket.gethostname().split(".")[0]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
