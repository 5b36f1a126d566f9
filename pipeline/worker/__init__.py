"""Consumer groups: records in, handled, retried or dead records out.

At least once: a record's offset is committed only after it was handled, or its copy on a retry topic or the DLQ was
acknowledged. ``worker.py`` is the poll thread. In it records go from ``dispatch.py`` by ``beginning.py`` to an engine
(``threads.py``, ``tasks.py``, ``processes.py``), their outcomes, of which ``settlement.py`` decides, through
``settling.py`` to the watermark, ``outlet.py`` or ``holding.py``; ``handover.py`` gives partitions back.
"""

from pipeline.worker.worker import COMMIT_S, Limits, Worker

__all__ = ["COMMIT_S", "Limits", "Worker"]
