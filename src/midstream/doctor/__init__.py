"""The doctor: what is wrong with this host and its network, and the command that mends it.

finding     what a check says                repair        what `--fix` may change by itself
subject     which host of const.toml this is
kernel, interface, neighbours, program, service, reach     the checks by theme: each module reads facts, and
            judges them in a function of its own that asks nothing of the machine
diagnosis   all of them in order             station       commands for a control station on any system

Nothing is imported here: `station` has to work where there is nothing of Linux.
"""
