"""Consumer groups: records in, handled, retried or dead records out.

At least once: a record's offset is committed only after it was handled, or its copy on a retry topic or the DLQ was
acknowledged. ``worker.py`` polls and settles, ``threads.py`` and ``tasks.py`` run handlers, ``settlement.py`` decides.
"""

from pipeline.worker.worker import Limits, Worker

__all__ = ["Limits", "Worker"]
