/* SPDX-License-Identifier: GPL-2.0-only */
/* What became of a packet: each marked one is counted once, in the entry of its sensor. */
#ifndef MIDSTREAM_OUTCOME_H
#define MIDSTREAM_OUTCOME_H

#include "tables.h"

/* The counters' entry for what cannot be told to come from a known sensor. */
#define NO_SENSOR SENSOR_COUNT

#define COUNT(sensor, outcome)                                                        \
	({                                                                            \
		__u32 position = (sensor);                                            \
		struct counters *counted = bpf_map_lookup_elem(&counters, &position); \
		if (counted)                                                          \
			counted->outcome++;                                           \
	})

#endif
