"""What the raylet of the test cluster starts instead of Python: asks for a forked worker and waits for its end."""

import array
import json
import os
import socket
import sys

address, interpreter, *arguments = sys.argv[1:]
if arguments[0].endswith("/setup_worker.py"):  # only workers with a runtime environment
    del arguments[0]
elif not arguments[0].endswith("/default_worker.py"):  # one of the raylet's own helpers
    os.execv(interpreter, [interpreter, *arguments])
request = json.dumps(
    {
        "arguments": arguments,
        "environment": dict(os.environ),
        "directory": os.getcwd(),
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
    }
).encode()
connection = socket.socket(socket.AF_UNIX)
connection.connect(address)
descriptors = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))
connection.sendmsg([len(request).to_bytes(8, "little")], [descriptors])
connection.sendall(request)
connection.recv(1)
