"""midstream as services of systemd: their units, and how a host gets them and loses them again.

- `installation`  puts them on a host, and takes them away
- `place`         whether the services can run midstream where it is installed
- `state`         what has become of them
- `units`         the files themselves
"""
