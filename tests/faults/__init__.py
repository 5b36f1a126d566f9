"""A seed and a time in, a campaign of faults against the whole pipeline and an audit of every event id out.

``python -m tests.faults --help``. Real servers, the CLI's own processes, and a judge (``auditor.py``) that shares no
code with what it judges.
"""
