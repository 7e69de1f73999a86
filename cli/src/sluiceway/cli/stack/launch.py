"""Starts one server so that it can't outlive the process that asked for it, then becomes that server.

Role: run by `process.Server` as a script (`python -I -S launch.py PARENT_PID USER COMMAND…`), on Linux only.
It must not import anything outside of the standard library, and nothing that is slow to import: every start pays.
"""

import ctypes
import os
import pwd
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent_pid: int, user: str, command: list[str]) -> None:
    """Replaces this process by `command`.

    Args:
        parent_pid: the process whose end kills the command; 0 ties it to none.
        user: whom to run as; "" keeps the user.
        command: an absolute path and its arguments.
    """
    if user:
        entry = pwd.getpwnam(user)
        os.initgroups(user, entry.pw_gid)
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    if parent_pid:
        # After the change of user, which clears the setting; before the check, so that no death goes unseen.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:
            sys.exit("the parent process is gone")
    try:
        os.execv(command[0], command)  # noqa: S606 - no shell is what we want
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
