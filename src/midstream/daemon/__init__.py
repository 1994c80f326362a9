"""The daemon: finds the other hosts, pins their addresses, writes const.toml, attaches, watches and heals.

identity and interface say who this host is. talking says it to the others and hears them, by discovery and
heartbeat; peers remembers them. plan makes the topology of what was heard. host puts it into force, with
neighbours (their entries, and the host routes) and ebpf.loader.tune (the logger's quickack routes).
reconciling decides when, and watch wakes it. destinations has the loggers watched, and the data sent where
one takes it: way gathers the evidence, failover judges it. sockets tells what a logger has committed,
retention what the ring keeps of the rest, and salvage stores that. service makes and runs all of them;
snapshot, status, log and notify tell.
"""
