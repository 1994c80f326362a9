"""The logger's databases, SQL and JetStream: what is written into them, and what is read from them again.

store says what a database must do for the logger (`Store`), stored what its readers see (`Log`); databases
chooses by the URL. sql and jetstream write, sql_log and jetstream_log read. opening says what is wrong with a
database. schema has the tables, telling those of what hardworkers tell, readings that of typed columns.
pruning makes room in a log, room in a spool. Another database begins in databases.
"""
