"""The proof: a simulated load, receivers that do the same job, what each costs the hardworker, a report."""
