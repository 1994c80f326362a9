"""Chaos: faults at random moments on all hosts, and a judge that compares what each end holds with what was
sent and acknowledged. `client.py` and `application.py` are programs of their own; nothing of midstream's
judges midstream."""
