"""The daemon: finds the other hosts, pins their addresses, writes const.toml, attaches, watches and heals.

role, interface and key say who this host is; announcement, discovery and peers find the others; plan makes
the topology of what was found; host, with neighbours and resets, puts it into force; watch and heartbeat
notice what changes, and failover decides what follows; sockets tells what a logger has committed, retention
what the ring keeps of the rest, and salvage stores that; service runs all of them, and status, log and notify
tell.
"""
