"""The one place where user code with a deadline runs: processes that are killed, whatever they are stuck in.

=============== =====================================================================================
``worker``      one process that answers tasks, started again when it was killed (the driver's end)
``pool``        several of them, with futures that can be cancelled
``supervisor``  a small process between the driver and the user's code: keeps deadlines, owns the way back
``child``       what the supervisor forks: runs the user's code
``soft_limit``  threads of the driver, for code that holds state there: given up when late, never stopped
=============== =====================================================================================

What the driver reads is JSON of a limited length from the supervisor alone. This contains code that fails, hangs, lies
or writes where it should not. It is no sandbox: the code runs as the same user (see docs/reliability.md).
"""
