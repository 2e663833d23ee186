"""Children that end with their parent."""

import os
import subprocess
import sys
import time

from companion.runs.processes import python_path

GROUP = """
import os, subprocess, sys, time
if sys.argv[1:] == ["child"]:
    from companion.runs.processes import end_with_parent
    end_with_parent()
    assert "COMPANION_PARENT" not in os.environ
    below = subprocess.Popen(["sleep", "60"])
    print(os.getpid(), below.pid, flush=True)
    time.sleep(60)
else:
    subprocess.run([sys.executable, __file__, "child"], start_new_session=True,
                   env=os.environ | {"COMPANION_PARENT": str(os.getpid())})
"""


def test_a_child_and_all_it_started_end_with_a_parent_that_is_killed(tmp_path, is_alive):
    script = tmp_path / "group.py"
    script.write_text(GROUP)
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": python_path()}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert all(map(is_alive, pids))
    parent.kill()
    parent.communicate()
    end = time.monotonic() + 20
    while any(map(is_alive, pids)):
        assert time.monotonic() < end, "children outlived their parent"
        time.sleep(0.1)
