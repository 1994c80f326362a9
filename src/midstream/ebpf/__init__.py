"""The eBPF programs (C), their compiler, and their loader."""
