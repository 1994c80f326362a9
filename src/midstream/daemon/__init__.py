"""The daemon: finds the other hosts, pins their addresses, writes const.toml, attaches, watches and heals.

identity and interface say who this host is. talking says it to the others and hears them, by discovery and
heartbeat; peers remembers them. plan makes the topology of what was heard, host puts it into force, and
reconciling decides when. destinations has the loggers watched and sends the data where one takes it: way
gathers the evidence, failover judges it. sockets tells what a logger has committed, retention what the ring
keeps of the rest, and salvage stores that. service makes and runs all of them; snapshot, status, log and
notify tell.
"""
