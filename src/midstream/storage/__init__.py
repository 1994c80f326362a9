"""The logger's databases, SQL and JetStream: what is written into them, and what is read from them again."""
