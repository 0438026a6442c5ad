"""What goes wrong with Ray on this machine."""


class RayProblem(Exception):
    """Ray cannot be started or joined here; the message says why, and what to do."""
