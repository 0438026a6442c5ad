"""This project against TRL on a CPU: the same model, data, batches, precision, threads and steps, in turns.

``hatch run bench:compare`` runs it; docs/performance.md says what is compared and how. Modules that the peers' own
environments import (``workloads``, ``trl_runner``, ``plain_runner``, ``progress``) need nothing of this project's.
"""
