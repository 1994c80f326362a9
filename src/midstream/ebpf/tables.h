/* SPDX-License-Identifier: GPL-2.0-only */
/* The hardworker's maps. The loader sets the sizes that config.toml decides and pins them, before
 * the program is attached.
 */
#ifndef MIDSTREAM_TABLES_H
#define MIDSTREAM_TABLES_H

#include "bpf.h"
#include "connection.h"
#include "const.h"
#include "record.h"
#include "settings.h"

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20); /* config.toml: hardworker.ring_size */
} ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct connection_key);
	__type(value, struct connection);
	__uint(max_entries, 4096); /* config.toml: hardworker.connections */
} connections SEC(".maps");

/* What TIME_WAIT is to TCP, but bounded by number instead of time: the oldest makes room. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct connection_key);
	__type(value, struct finished);
	__uint(max_entries, 4096);
} finished SEC(".maps");

/* One for each sensor, in const.toml's order, and the last for strangers. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct counters);
	__uint(max_entries, SENSOR_COUNT + 1);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
} last_number SEC(".maps");

#endif
